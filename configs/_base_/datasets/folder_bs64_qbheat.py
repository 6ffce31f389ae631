# Any folder of images, at any depth, without labels: DATA_ROOT=FOLDER.
_base_ = './imagenet_bs128_qbheat.py'

from qbheat_mm.environment import read_env  # noqa: E402

train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(data_root=read_env('DATA_ROOT', 'data/photos'), data_prefix=''),
)
