# Control: the same probe on a random backbone with BatchNorm statistics of the training crops.
_base_ = './mobile-former-52m_1xb128-tran-1-coslr-20e_imagenette.py'

model = dict(backbone=dict(init_cfg=None))
default_hooks = dict(calibrate_bn=dict(type='CalibrateBNHook'))
