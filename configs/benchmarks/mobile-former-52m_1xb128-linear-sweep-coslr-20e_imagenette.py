# Linear probes at six learning rates (for a batch of 128) in one run:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = './mobile-former-52m_1xb128-linear-coslr-20e_imagenette.py'

model = dict(
    head=dict(
        _delete_=True,
        type='LRSweepHead',
        lrs=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        head=_base_.model.head,
    ),
)
optim_wrapper = dict(constructor='LRSweepOptimWrapperConstructor')
val_evaluator = dict(_delete_=True, type='LRSweepAccuracy')
test_evaluator = val_evaluator
