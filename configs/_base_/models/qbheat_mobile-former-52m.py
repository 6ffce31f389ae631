# 52m at output stride 16: the map of 224 px has 14 x 14 features, a quarter has 7 x 7.
model = dict(
    type='QBHeat',
    patch_size=16,
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        non_blocking=True,
    ),
    backbone=dict(type='MobileFormer', arch='52m', output_stride=16),
    neck=dict(type='HeatNeck', in_channels=96),
    decoder=dict(
        type='QBHeatDecoder',
        in_channels=96,
        out_channels=3 * 16**2,  # the pixels of a patch
        mixer='attention',
        embed_dims=96,
        depth=1,
        num_heads=3,
    ),
    head=dict(
        type='QBHeatPretrainHead',
        norm_pix=True,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
)
