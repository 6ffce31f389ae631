# Mobile-Former with the authors' classification head; the other sizes override the widths.
data_preprocessor = dict(
    num_classes=1000,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='MobileFormer', arch='294m', out_tokens=True),
    head=dict(
        type='MobileFormerClsHead',
        num_classes=1000,
        in_channels=192,
        token_dims=192,
        hidden_channels=1920,
        dropout=0.3,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)),
)
