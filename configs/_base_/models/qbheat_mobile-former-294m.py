_base_ = './qbheat_mobile-former-52m.py'

model = dict(
    backbone=dict(arch='294m'),
    neck=dict(in_channels=192),
    decoder=dict(in_channels=192),
)
