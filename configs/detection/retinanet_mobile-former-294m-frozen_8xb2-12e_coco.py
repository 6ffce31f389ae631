# The published 294m layout at its native strides 8, 16 and 32. Weights of a pre-training with output_stride=16 fit.
_base_ = './retinanet_mobile-former-285m-frozen_8xb2-12e_coco.py'
model = dict(backbone=dict(arch='294m', out_indices=(1, 2, 3), frozen_stages=4), neck=dict(in_channels=[48, 128, 192]))
