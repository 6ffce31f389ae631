_base_ = [
    '../_base_/models/mobile-former-294m.py',
    '../_base_/datasets/imagenette_bs128_probe.py',
    '../_base_/schedules/imagenette_adamw_coslr_12e.py',
    '../_base_/default_runtime.py',
]

# Output stride 16, as in self-supervised pre-training, so that the same probes apply.
model = dict(
    backbone=dict(arch='52m', output_stride=16),
    head=dict(num_classes=_base_.num_classes, in_channels=96, token_dims=128, hidden_channels=1024, dropout=0.2),
)
data_preprocessor = dict(num_classes=_base_.num_classes)
val_cfg = dict()
test_cfg = dict()
