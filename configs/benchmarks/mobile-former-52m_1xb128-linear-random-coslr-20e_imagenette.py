# The control: the same probe on random weights, whose BatchNorm statistics are first those of the training crops.
_base_ = './mobile-former-52m_1xb128-linear-coslr-20e_imagenette.py'

model = dict(backbone=dict(init_cfg=None))
default_hooks = dict(calibrate_bn=dict(type='CalibrateBNHook'))
