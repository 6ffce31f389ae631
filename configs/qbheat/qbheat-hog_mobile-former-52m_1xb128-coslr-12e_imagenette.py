_base_ = [
    '../_base_/models/qbheat-hog_mobile-former-52m.py',
    '../_base_/datasets/imagenette_bs128_qbheat.py',
    '../_base_/schedules/imagenette_adamw_coslr_12e.py',
    '../_base_/qbheat_runtime.py',
]
