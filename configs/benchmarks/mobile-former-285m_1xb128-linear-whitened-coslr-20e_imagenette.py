# The linear probe on whitened features.
_base_ = './mobile-former-285m_1xb128-linear-coslr-20e_imagenette.py'

model = dict(neck=[dict(type='GlobalAveragePooling'), dict(type='Whitening', in_channels=[160])])
default_hooks = dict(whitening=dict(type='WhiteningHook'))
