# Preprocessing and frozen backbone of detectors with a feature pyramid: strides 8 and 16; the neck computes the rest.
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='mmpretrain.MobileFormer',
        arch='285m',
        out_indices=(1, 2),
        frozen_stages=3,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'),
    ),
)
