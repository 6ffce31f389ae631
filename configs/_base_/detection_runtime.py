# default_runtime.py for MMDetection's classes.
_base_ = './default_runtime.py'

default_scope = 'mmdet'
default_hooks = dict(
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
    # off: --cfg-options default_hooks.check_dataset.enabled=False
    check_dataset=dict(type='DatasetCheckHook'),
)
custom_hooks = [dict(type='PlainCheckpointHook'), dict(type='InvalidLossHook')]
visualizer = dict(
    _delete_=True, type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
