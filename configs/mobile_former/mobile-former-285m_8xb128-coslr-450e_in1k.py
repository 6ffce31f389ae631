# The encoder of QB-Heat, supervised, with the recipe of 294m.
_base_ = [
    '../_base_/models/mobile-former-294m.py',
    '../_base_/datasets/imagenet_bs128_mobile_former.py',
    '../_base_/schedules/imagenet_bs1024_adamw_coslr_450e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='285m'),
    head=dict(in_channels=160),
)
