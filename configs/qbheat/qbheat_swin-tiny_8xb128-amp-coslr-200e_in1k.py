_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/datasets/imagenet_bs128_qbheat.py',
    '../_base_/schedules/adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]

# The first three stages of Swin-tiny, the third at stride 16. A quarter of 112 px gives maps of 28, 14 and 7, multiples
# of the window size 7, so nothing is padded (pad_small_map).
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=dict(embed_dims=96, depths=[2, 2, 6], num_heads=[3, 6, 12]),
        drop_path_rate=0.0,
        out_indices=(2,),
    ),
    neck=dict(in_channels=384),
    decoder=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)}))
