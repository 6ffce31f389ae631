_base_ = [
    '../_base_/models/mobile-former-294m.py',
    '../_base_/datasets/imagenette_bs128_probe.py',
    '../_base_/schedules/imagenette_adamw_coslr_12e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='285m'),
    head=dict(num_classes=_base_.num_classes, in_channels=160),
)
data_preprocessor = dict(num_classes=_base_.num_classes)
val_cfg = dict()
test_cfg = dict()

max_epochs = 200
warmup_epochs = 5
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
