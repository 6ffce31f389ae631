# default_runtime.py and what a QB-Heat pre-training logs besides.
_base_ = './default_runtime.py'

custom_hooks = [
    dict(type='PlainCheckpointHook'),
    dict(type='InvalidLossHook'),
    dict(type='SkippedImagesHook'),
    dict(type='HeatStatisticsHook'),
]
