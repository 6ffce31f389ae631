# The same detector on whitened features.
_base_ = './conditional-detr_mobile-former-285m-frozen_1xb16-50e_coco-people320-person.py'

model = dict(neck=[dict(type='mmpretrain.Whitening', in_channels=[160]), _base_.model.neck])
default_hooks = dict(whitening=dict(type='WhiteningHook'))
