# The detection that a CPU can do: a small DINO on 52m, pictures of 256 px at most, 6 epochs.
_base_ = [
    '../_base_/models/dino-1scale_mobile-former-52m-frozen.py',
    '../_base_/datasets/coco_people320.py',
    '../_base_/schedules/detr_adamw_150e.py',
    '../_base_/detection_runtime.py',
]
max_epochs = 6
dataset = dict(metainfo=dict(classes=('person',)))
scale = (256, 256)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
model = dict(bbox_head=dict(num_classes=1))
train_dataloader = dict(dataset=dict(dataset, pipeline=train_pipeline), num_workers=2)
val_dataloader = dict(dataset=dict(dataset, pipeline=test_pipeline), num_workers=2)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
