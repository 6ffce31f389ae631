# The same pre-training with k-NN accuracy before it and after every second epoch. Labels are used for evaluation only.
_base_ = './qbheat_mobile-former-52m_1xb128-coslr-12e_imagenette.py'

from qbheat_mm.environment import read_env  # noqa: E402

data_root = read_env('DATA_ROOT', 'data/imagenette')
pipeline = [
    dict(type='LoadImage'),
    dict(type='ResizeEdge', scale=128, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=128),
    dict(type='PackInputs'),
]
dataset = dict(type='ImageFolderDataset', data_root=data_root, test_mode=True, pipeline=pipeline)
default_hooks = dict(
    knn=dict(
        type='KnnHook',
        bank=dict(data_prefix='train', **dataset),
        queries=dict(data_prefix='val', **dataset),
        interval=2,
    ),
)
