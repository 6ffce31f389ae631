_base_ = [
    '../_base_/models/yolox-tiny_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_yolox.py',
    '../_base_/schedules/yolox_sgd_300e.py',
    '../_base_/detection_runtime.py',
]
default_hooks = dict(
    checkpoint=dict(interval=10),
    mode_switch=dict(type='YOLOXModeSwitchHook', num_last_epochs=_base_.plain_epochs, priority=48),
    sync_norm=dict(type='SyncNormHook', priority=48),
    ema=dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0001, update_buffers=True, priority=49),
)
