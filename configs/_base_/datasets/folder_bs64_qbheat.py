# Any folder of images, at any depth, without labels: DATA_ROOT=FOLDER.
_base_ = './imagenet_bs128_qbheat.py'

from qbheat_mm.environment import read_env  # noqa: E402

# Photos may be large: a JPEG is decoded at 1/2 to 1/8 where the crop is at least that much larger than needed. Others
# give the same crops to the bit.
train_pipeline = [
    dict(_base_.train_pipeline[1], type='LoadReducedRandomResizedCrop', ignore_empty=True),
    *_base_.train_pipeline[2:],
]
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(data_root=read_env('DATA_ROOT', 'data/photos'), data_prefix='', pipeline=train_pipeline),
)
