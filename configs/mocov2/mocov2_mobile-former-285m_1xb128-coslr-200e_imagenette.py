_base_ = './mocov2_mobile-former-52m_1xb128-coslr-200e_imagenette.py'

model = dict(backbone=dict(arch='285m'), neck=dict(in_channels=160))
