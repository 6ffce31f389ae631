_base_ = ['./retinanet_mobile-former-285m-frozen_8xb2-12e_coco.py', '../_base_/models/resnet-50-frozen.py']
model = dict(
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), **_base_.resnet), neck=dict(in_channels=[512, 1024, 2048])
)
