_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/datasets/imagenet_bs128_qbheat.py',
    '../_base_/schedules/adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]

# The first three stages of ConvNeXt-tiny, the third at stride 16; the final norm applies to the map, not its average.
model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch=dict(depths=[3, 3, 9], channels=[96, 192, 384]),
        out_indices=(2,),
        gap_before_final_norm=False,
    ),
    neck=dict(in_channels=384),
    decoder=dict(in_channels=384),
)
