# tran-1 on whitened features.
_base_ = './mobile-former-52m_1xb128-tran-1-noaug-coslr-20e_imagenette.py'

model = dict(neck=[dict(type='Whitening', in_channels=[96])])
default_hooks = dict(whitening=dict(type='WhiteningHook'))
