# Fine-tuning of the backbone in a checkpoint:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = [
    '../_base_/models/ft_mobile-former-285m.py',
    '../_base_/datasets/imagenette_bs128_probe.py',
    '../_base_/schedules/imagenette_adamw_coslr_12e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(num_classes=_base_.num_classes),
    head=dict(num_classes=_base_.num_classes),
)
val_cfg = dict()
test_cfg = dict()
