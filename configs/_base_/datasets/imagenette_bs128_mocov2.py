# Imagenette's training images without labels at 128 px, two views of each.
_base_ = './imagenet_bs32_mocov2.py'

from qbheat_mm.environment import read_env  # noqa: E402

img_size = 128
view_pipeline = [dict(_base_.view_pipeline[0], scale=img_size), *_base_.view_pipeline[1:]]
train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='MultiView', num_views=2, transforms=[view_pipeline]),
    _base_.train_pipeline[2],
]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    dataset=dict(data_root=read_env('DATA_ROOT', 'data/imagenette'), pipeline=train_pipeline),
)
