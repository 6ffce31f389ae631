_base_ = './linear_mobile-former-52m.py'

model = dict(
    backbone=dict(arch='294m'),
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=192)],
    head=dict(in_channels=192),
)
