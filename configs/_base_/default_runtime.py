# The runtime of every config. `custom_imports` registers the components of this project, so that the configs also run
# under the tools of mmpretrain and mmdet.
custom_imports = dict(imports=['qbheat_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3),
    preemption=dict(type='PreemptionHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    seed=dict(type='DeterministicSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
    class_check=dict(type='ClassCheckHook'),
    effective_batch=dict(type='EffectiveBatchHook'),
    throughput=dict(type='ThroughputHook'),
    # Checkpoints are loaded without executing code in them; trust=True is for pickled files of stock mmengine runs.
    plain_checkpoint=dict(type='PlainCheckpointHook'),
    invalid_loss=dict(type='InvalidLossHook'),
    skipped_images=dict(type='SkippedImagesHook'),
)

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
# All randomness is derived from the seed, so a resumed run repeats the uninterrupted one.
randomness = dict(seed=0, diff_rank_seed=True)
