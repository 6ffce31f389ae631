_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/datasets/imagenet_bs128_qbheat.py',
    '../_base_/schedules/adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]

# All four stages, the last one with stride 1, so the output stride is 16 and the weights fit the original RegNet.
model = dict(
    backbone=dict(_delete_=True, type='RegNet', arch='regnetx_400mf', strides=(2, 2, 2, 1)),
    neck=dict(in_channels=384),
    decoder=dict(in_channels=384),
)
