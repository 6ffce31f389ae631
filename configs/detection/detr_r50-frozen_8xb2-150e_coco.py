_base_ = ['./detr_mobile-former-285m-frozen_8xb2-150e_coco.py', '../_base_/models/resnet-50-frozen.py']
model = dict(backbone=dict(_delete_=True, out_indices=(3,), **_base_.resnet), neck=dict(in_channels=[2048]))
