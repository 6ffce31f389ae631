# Trained backbone, as in the original: a tenth of the learning rate, fixed BatchNorm statistics.
_base_ = './detr_mobile-former-285m-frozen_8xb2-150e_coco.py'
model = dict(backbone=dict(frozen_stages=-1, norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}))
