_base_ = './mocov2_mobile-former-52m.py'

model = dict(backbone=dict(arch='285m'), neck=dict(in_channels=160))
