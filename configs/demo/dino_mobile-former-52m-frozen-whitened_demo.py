# The same detector on whitened features.
_base_ = './dino_mobile-former-52m-frozen_demo.py'

model = dict(neck=[dict(type='mmpretrain.Whitening', in_channels=[96]), _base_.model.neck])
default_hooks = dict(whitening=dict(type='WhiteningHook'))
