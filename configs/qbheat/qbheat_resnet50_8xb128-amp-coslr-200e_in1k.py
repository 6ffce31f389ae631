_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/datasets/imagenet_bs128_qbheat.py',
    '../_base_/schedules/adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]

# Three stages, the third at stride 16; the fourth would be at 32.
model = dict(
    backbone=dict(
        _delete_=True, type='ResNet', depth=50, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)
    ),
    neck=dict(in_channels=1024),
    decoder=dict(in_channels=1024),
)
