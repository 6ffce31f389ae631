# Linear probes without BatchNorm. Features keep their scale, which differs between pre-trainings, hence the wide sweep:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = './mobile-former-285m_8xb128-linear-coslr-90e_in1k.py'

model = dict(
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LRSweepHead',
        lrs=(0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        head=_base_.model.head,
    ),
)
optim_wrapper = dict(constructor='LRSweepOptimWrapperConstructor')
val_evaluator = dict(_delete_=True, type='LRSweepAccuracy')
test_evaluator = val_evaluator
