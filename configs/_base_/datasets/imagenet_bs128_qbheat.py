# ImageNet-1k's training images without labels: DATA_ROOT holds train/, as in mmpretrain.
_base_ = []  # without it, mmengine takes a config with an import for a lazy one

from qbheat_mm.environment import read_env  # noqa: E402

img_size = 224

train_pipeline = [
    dict(type='LoadImage', ignore_empty=True),
    dict(type='TorchRandomResizedCrop', scale=img_size, crop_ratio_range=(0.2, 1.0), interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='QuarterMask'),
    dict(type='PackInputs', meta_keys=('img_path', 'visible_origin')),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolderDataset',
        data_root=read_env('DATA_ROOT', 'data/imagenet'),
        data_prefix='train',
        with_label=False,
        pipeline=train_pipeline,
    ),
)
