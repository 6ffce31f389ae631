# Imagenette, or any class folders, at 128 px: DATA_ROOT holds train/ and val/ with a folder per class.
_base_ = []  # without it, mmengine takes a config with an import for a lazy one

from qbheat_mm.environment import read_env  # noqa: E402

data_root = read_env('DATA_ROOT', 'data/imagenette')
num_classes = read_env('NUM_CLASSES', 10)
img_size = 128

train_pipeline = [
    dict(type='LoadImage', ignore_empty=True),
    dict(type='TorchRandomResizedCrop', scale=img_size, interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='ResizeEdge', scale=img_size, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=img_size),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageFolderDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolderDataset', data_root=data_root, data_prefix='val', test_mode=True, pipeline=test_pipeline
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
