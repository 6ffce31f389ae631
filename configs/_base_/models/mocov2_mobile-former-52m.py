# mmpretrain's MoCo on the pooled stride-16 map of 52m, as in QB-Heat. Momentum in mmpretrain's convention: 0.001 is the
# 0.999 of the paper.
model = dict(
    type='MoCo',
    queue_len=65536,
    feat_dim=128,
    momentum=0.001,
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(type='MobileFormer', arch='52m', output_stride=16),
    neck=dict(type='MoCoV2Neck', in_channels=96, hid_channels=2048, out_channels=128, with_avg_pool=True),
    head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2),
)
