# default_runtime.py for mmdet's classes.
_base_ = './default_runtime.py'

default_scope = 'mmdet'
default_hooks = dict(
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
    dataset_check=dict(type='DatasetCheckHook'),
)
visualizer = dict(
    _delete_=True, type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
