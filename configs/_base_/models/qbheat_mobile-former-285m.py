_base_ = './qbheat_mobile-former-52m.py'

model = dict(
    backbone=dict(arch='285m'),
    neck=dict(in_channels=160),
    decoder=dict(in_channels=160),
)
