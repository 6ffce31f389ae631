# The published layout with its last stage at stride 16.
_base_ = './detr_mobile-former-285m-frozen.py'
model = dict(backbone=dict(arch='294m', output_stride=16, frozen_stages=4), neck=dict(in_channels=[192]))
