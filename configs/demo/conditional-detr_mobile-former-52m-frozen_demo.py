# The demo's detector: a small Conditional DETR on the frozen backbone of the pre-training.
_base_ = [
    '../_base_/models/detr_mobile-former-294m-frozen.py',
    '../_base_/schedules/detr_adamw_150e.py',
    '../_base_/detection_runtime.py',
]

img_size = 160
max_epochs = 20
width = 256  # mmdet's Conditional DETR takes no other
data_root = '{{$DATA_ROOT:work_dirs/demo/data}}/detection/'
metainfo = dict(classes=('astronaut', 'chelsea', 'coffee', 'stereo_motorcycle'))

attention = dict(embed_dims=width, num_heads=8, attn_drop=0.0)
ffn = dict(embed_dims=width, feedforward_channels=2 * width, ffn_drop=0.0)
model = dict(
    type='ConditionalDETR',
    num_queries=20,
    backbone=dict(arch='52m'),
    neck=dict(in_channels=[96], out_channels=width, norm_cfg=dict(type='GN', num_groups=32)),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(self_attn_cfg=dict(embed_dims=width, dropout=0.0), ffn_cfg=ffn),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(_delete_=True, cross_attn=False, **attention),
            cross_attn_cfg=dict(_delete_=True, cross_attn=True, **attention),
            ffn_cfg=ffn,
        ),
    ),
    positional_encoding=dict(num_feats=width // 2),
    bbox_head=dict(
        type='ConditionalDETRHead',
        num_classes=len(metainfo['classes']),
        embed_dims=width,
        loss_cls=dict(_delete_=True, type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ]
        )
    ),
)

meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(img_size, img_size), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=meta_keys),
        ],
    ),
)
val_evaluator = dict(type='CocoBoxMetric', ann_file=data_root + 'annotations/val.json')
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
auto_scale_lr = dict(enable=False)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
