# Fine-tuning: all parameters are trained, starting from the pre-trained backbone.
_base_ = './linear_mobile-former-52m.py'

model = dict(
    backbone=dict(frozen_stages=-1),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
)
