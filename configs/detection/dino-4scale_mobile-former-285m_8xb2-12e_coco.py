# Trained backbone, as in the original: a tenth of the learning rate, fixed BatchNorm statistics.
_base_ = './dino-4scale_mobile-former-285m-frozen_8xb2-12e_coco.py'
model = dict(backbone=dict(frozen_stages=-1, norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}))
