# Linear probes at seven learning rates (for a batch of 1,024) in one run:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = './mobile-former-285m_8xb128-linear-coslr-90e_in1k.py'

model = dict(
    head=dict(
        _delete_=True,
        type='LRSweepHead',
        lrs=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
        head=_base_.model.head,
    ),
)
optim_wrapper = dict(constructor='LRSweepOptimWrapperConstructor')
val_evaluator = dict(_delete_=True, type='LRSweepAccuracy')
test_evaluator = val_evaluator
