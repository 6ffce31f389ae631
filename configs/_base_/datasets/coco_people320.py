# COCO photos with people, longest side 320 px, in COCO's format: DATA_ROOT holds images/ and
# annotations/instances_{train,val}.json. Classes: the ten with the most training boxes, in the order of the file.
_base_ = './coco_detr.py'

from qbheat_mm.environment import read_env  # noqa: E402

data_root = read_env('DATA_ROOT', 'data/coco_people320') + '/'
classes = (
    'person',
    'car',
    'traffic light',
    'backpack',
    'handbag',
    'bottle',
    'cup',
    'chair',
    'dining table',
    'book',
)
num_classes = len(classes)
metainfo = dict(classes=classes)

sizes = [(side, side) for side in range(192, 321, 32)]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoiceResize', scales=sizes, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 320), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
