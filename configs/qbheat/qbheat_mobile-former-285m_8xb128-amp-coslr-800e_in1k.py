_base_ = [
    '../_base_/models/qbheat_mobile-former-285m.py',
    '../_base_/datasets/imagenet_bs128_qbheat.py',
    '../_base_/schedules/adamw_coslr_800e.py',
    '../_base_/qbheat_runtime.py',
]
