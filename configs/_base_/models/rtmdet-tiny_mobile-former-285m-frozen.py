# mmdet's RTMDet-tiny. Its neck takes three levels of 96 channels: strides 8 and 16 from the frozen backbone, 32 from
# the mapper before it. BatchNorm in place of SyncBN, which needs GPUs.
_base_ = './pyramid_mobile-former-285m-frozen.py'
layers = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU', inplace=True))
model = dict(
    type='RTMDet',
    neck=[
        dict(type='ChannelMapper', in_channels=[32, 160], kernel_size=1, out_channels=96, num_outs=3, **layers),
        dict(
            type='CSPNeXtPAFPN',
            in_channels=[96, 96, 96],
            out_channels=96,
            num_csp_blocks=1,
            expand_ratio=0.5,
            **layers,
        ),
    ],
    bbox_head=dict(
        type='RTMDetSepBNHead',
        num_classes=80,
        in_channels=96,
        stacked_convs=2,
        feat_channels=96,
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        with_objectness=False,
        exp_on_reg=False,
        share_conv=True,
        pred_kernel_size=1,
        **layers,
    ),
    train_cfg=dict(
        assigner=dict(type='DynamicSoftLabelAssigner', topk=13), allowed_border=-1, pos_weight=-1, debug=False
    ),
    test_cfg=dict(
        nms_pre=30000, min_bbox_size=0, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.65), max_per_img=300
    ),
)
del layers
