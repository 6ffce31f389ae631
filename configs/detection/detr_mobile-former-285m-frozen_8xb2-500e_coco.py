_base_ = './detr_mobile-former-285m-frozen_8xb2-150e_coco.py'

max_epochs = 500
param_scheduler = [dict(_base_.param_scheduler[0], end=max_epochs, milestones=[334])]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
