# Any folder of images, at any depth, without labels: DATA_ROOT=FOLDER.
_base_ = './imagenet_bs128_qbheat.py'

train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(data_root='{{$DATA_ROOT:data/photos}}', data_prefix=''),
)
