# What every run of this project shares. `custom_imports` registers its components, so that these configs also run
# under the packages' own tools.
custom_imports = dict(imports=['qbheat_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    draws=dict(type='DeterministicSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
    # reads checkpoints without executing anything in them; trust=True is for raw files of stock mmengine runs
    checkpoint_guard=dict(type='CheckpointGuardHook', trust=False),
    check_classes=dict(type='ClassCheckHook'),
    effective_batch=dict(type='EffectiveBatchHook'),
    throughput=dict(type='ThroughputHook'),
)
custom_hooks = [
    dict(type='PlainCheckpointHook'),
    dict(type='InvalidLossHook'),
    dict(type='SkippedImagesHook'),
]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=50)

log_level = 'INFO'
load_from = None
resume = False
# All draws follow from it: a resumed run goes on as the interrupted one would have.
randomness = dict(seed=0, diff_rank_seed=True)
