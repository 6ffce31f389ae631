# tran-1 on whitened features.
_base_ = './mobile-former-285m_1xb128-tran-1-coslr-20e_imagenette.py'

model = dict(neck=[dict(type='Whitening', in_channels=[160])])
default_hooks = dict(whitening=dict(type='WhiteningHook'))
