_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/datasets/imagenet_bs128_qbheat.py',
    '../_base_/schedules/adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]

# The last stage at stride 16. mmpretrain's EfficientNet cannot leave out the stages after it: they run unused.
model = dict(
    backbone=dict(_delete_=True, type='EfficientNet', arch='b0', out_indices=(4,)),
    neck=dict(in_channels=112),
    decoder=dict(in_channels=112),
)
find_unused_parameters = True
