_base_ = [
    '../_base_/models/fcos_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_1x.py',
    '../_base_/schedules/detection_sgd_12e.py',
    '../_base_/detection_runtime.py',
]
optim_wrapper = dict(
    optimizer=dict(lr=0.01),
    paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='ConstantLR', factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    _base_.param_scheduler[1],
]
