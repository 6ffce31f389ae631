# Control: the same probe on a random backbone with BatchNorm statistics of the training crops.
_base_ = './linear_mobile-former-52m_demo.py'

model = dict(backbone=dict(init_cfg=None))
default_hooks = dict(calibrate_bn=dict(type='CalibrateBNHook', num_samples=1024))
