# DINO's 2x.
_base_ = './detr_adamw_150e.py'
max_epochs = 24
param_scheduler = [dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[20], gamma=0.1)]
train_cfg = dict(max_epochs=max_epochs)
