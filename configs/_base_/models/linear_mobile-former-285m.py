_base_ = './linear_mobile-former-52m.py'

model = dict(
    backbone=dict(arch='285m', frozen_stages=3),  # it has three stages and ends at stride 16
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=160)],
    head=dict(in_channels=160),
)
