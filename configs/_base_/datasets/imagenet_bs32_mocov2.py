# ImageNet-1k's training images without labels, two views of each with the augmentations of MoCo-v2.
_base_ = './imagenet_bs128_qbheat.py'

img_size = 224
view_pipeline = [
    dict(type='TorchRandomResizedCrop', scale=img_size, crop_ratio_range=(0.2, 1.0)),
    dict(
        type='RandomApply',
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
        prob=0.8,
    ),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf', prob=0.5),
    dict(type='RandomFlip', prob=0.5),
]
train_pipeline = [
    dict(type='LoadImage', ignore_empty=True),
    dict(type='MultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs', meta_keys=('img_path',)),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
