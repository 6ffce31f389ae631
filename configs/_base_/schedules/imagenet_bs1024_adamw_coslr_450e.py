# The recipe of Mobile-Former's authors for 294m and 508m: AdamW and a cosine over 450 epochs at batch 1024.
optim_wrapper = dict(
    constructor='TrainableParamsOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.20, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=445, eta_min=1e-5, by_epoch=True, begin=5, end=450),
]

train_cfg = dict(by_epoch=True, max_epochs=450, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# 8 GPUs with 128 images each; the learning rate scales linearly with the total batch.
auto_scale_lr = dict(base_batch_size=1024, enable=True)
