_base_ = [
    '../_base_/models/qbheat_mobile-former-285m.py',
    '../_base_/datasets/imagenette_bs128_qbheat.py',
    '../_base_/schedules/imagenette_adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]
