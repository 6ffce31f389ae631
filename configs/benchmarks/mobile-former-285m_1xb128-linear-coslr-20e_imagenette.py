# Linear probe of the backbone in a checkpoint:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = [
    '../_base_/models/linear_mobile-former-285m.py',
    '../_base_/datasets/imagenette_bs128_probe.py',
    '../_base_/schedules/linear_sgd_coslr_90e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    head=dict(num_classes=_base_.num_classes),
)
max_epochs = 20
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(_base_.param_scheduler[0], end=max_epochs)]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=128)
