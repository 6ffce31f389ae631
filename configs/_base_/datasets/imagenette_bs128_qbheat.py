# Imagenette's training images without labels at 128 px: the map has 8 x 8 features, a quarter has 4 x 4.
_base_ = './imagenet_bs128_qbheat.py'

from qbheat_mm.environment import read_env  # noqa: E402

img_size = 128
sizes = dict(TorchRandomResizedCrop=dict(scale=img_size))
train_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.train_pipeline]
train_dataloader = dict(
    num_workers=2, dataset=dict(data_root=read_env('DATA_ROOT', 'data/imagenette'), pipeline=train_pipeline)
)
