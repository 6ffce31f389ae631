# DINO's shortest schedule, 1x.
_base_ = './detr_adamw_150e.py'
max_epochs = 12
param_scheduler = [dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[11], gamma=0.1)]
train_cfg = dict(max_epochs=max_epochs)
