# The 50 epochs of Deformable DETR: 16 GPUs with 2 images each, and a lower learning rate for the sampling locations.
_base_ = './detr_adamw_50e.py'
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(
        custom_keys={'sampling_offsets': dict(lr_mult=0.1), 'reference_points': dict(lr_mult=0.1)},
    ),
)
auto_scale_lr = dict(base_batch_size=32)
