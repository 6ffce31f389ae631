_base_ = [
    '../_base_/models/mocov2_mobile-former-52m.py',
    '../_base_/datasets/imagenet_bs32_mocov2.py',
    '../_base_/schedules/mocov2_sgd_coslr_200e.py',
    '../_base_/mocov2_runtime.py',
]
