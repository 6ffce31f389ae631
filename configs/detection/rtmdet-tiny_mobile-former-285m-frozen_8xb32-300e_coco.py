_base_ = [
    '../_base_/models/rtmdet-tiny_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_rtmdet.py',
    '../_base_/schedules/rtmdet_adamw_300e.py',
    '../_base_/detection_runtime.py',
]
default_hooks = dict(
    checkpoint=dict(interval=10),
    ema=dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    pipeline_switch=dict(
        type='PipelineSwitchHook',
        switch_epoch=_base_.max_epochs - _base_.plain_epochs,
        switch_pipeline=_base_.plain_pipeline,
    ),
)
