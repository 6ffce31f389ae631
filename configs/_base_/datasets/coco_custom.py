# Your own data in COCO's format; classes, num_classes and evaluator follow from the annotation file:
#     DATA_ROOT=/path/to/data python tools/train.py CONFIG
# with annotations/instances_{train,val}.json and images/ in that folder. CLASSES=person,dog selects classes.
# Configs with this base need model = dict(bbox_head=dict(num_classes=_base_.num_classes)).
_base_ = []  # without it, mmengine takes a config with an import for a lazy one

from qbheat_mm.datasets.coco import read_classes  # noqa: E402
from qbheat_mm.environment import read_env  # noqa: E402

data_root = read_env('DATA_ROOT', 'data/custom')
train_ann = f'{data_root}/annotations/instances_train.json'
val_ann = f'{data_root}/annotations/instances_val.json'
classes = read_classes(train_ann, only=read_env('CLASSES', 'all'))
num_classes = len(classes)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='CocoDataset',
        ann_file=train_ann,
        data_prefix=dict(img=f'{data_root}/images'),
        metainfo=dict(classes=classes),
        filter_cfg=dict(filter_empty_gt=False, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        ann_file=val_ann,
        data_prefix=dict(img=f'{data_root}/images'),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoBBoxMetric', ann_file=val_ann)
test_evaluator = val_evaluator
