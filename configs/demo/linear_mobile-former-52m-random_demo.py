# The control: the same probe on a random backbone, whose BatchNorm statistics are first those of the training crops.
_base_ = './linear_mobile-former-52m_demo.py'

model = dict(backbone=dict(init_cfg=None))
default_hooks = dict(calibrate_bn=dict(type='CalibrateBNHook', num_samples=1024))
