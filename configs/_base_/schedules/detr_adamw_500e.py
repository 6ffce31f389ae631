# DETR's long schedule, 500 epochs.
_base_ = './detr_adamw_150e.py'
max_epochs = 500
param_scheduler = [dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[334], gamma=0.1)]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
