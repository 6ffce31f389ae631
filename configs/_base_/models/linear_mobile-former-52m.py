# Linear probe: one linear layer is trained on the pooled features of the frozen backbone.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='MobileFormer',
        arch='52m',
        output_stride=16,
        frozen_stages=4,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
    # As in MAE: BatchNorm without affine parameters, then one linear layer.
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=96)],
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=96,
        loss=dict(type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01),
    ),
)
