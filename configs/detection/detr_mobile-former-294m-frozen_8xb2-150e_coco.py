# The published 294m layout with its last stage at stride 16.
_base_ = './detr_mobile-former-285m-frozen_8xb2-150e_coco.py'

model = dict(backbone=dict(arch='294m', output_stride=16, frozen_stages=4), neck=dict(in_channels=[192]))
