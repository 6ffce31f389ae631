# mmdet's YOLOX-tiny. Its neck takes three levels of 96 channels: strides 8 and 16 from the frozen backbone, 32 from the
# mapper before it. Images are normalized as in the pre-training.
_base_ = './pyramid_mobile-former-285m-frozen.py'
layers = dict(norm_cfg=dict(type='BN', momentum=0.03, eps=0.001), act_cfg=dict(type='Swish'))
model = dict(
    type='YOLOX',
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(320, 640), size_divisor=32, interval=10)],
    ),
    neck=[
        dict(type='ChannelMapper', in_channels=[32, 160], kernel_size=1, out_channels=96, num_outs=3, **layers),
        dict(
            type='YOLOXPAFPN',
            in_channels=[96, 96, 96],
            out_channels=96,
            num_csp_blocks=1,
            use_depthwise=False,
            upsample_cfg=dict(scale_factor=2, mode='nearest'),
            **layers,
        ),
    ],
    bbox_head=dict(
        type='YOLOXHead',
        num_classes=80,
        in_channels=96,
        feat_channels=96,
        stacked_convs=2,
        strides=(8, 16, 32),
        use_depthwise=False,
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='sum', loss_weight=1.0),
        loss_bbox=dict(type='IoULoss', mode='square', eps=1e-16, reduction='sum', loss_weight=5.0),
        loss_obj=dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='sum', loss_weight=1.0),
        loss_l1=dict(type='L1Loss', reduction='sum', loss_weight=1.0),
        **layers,
    ),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
)
del layers
