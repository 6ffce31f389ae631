_base_ = './dino-4scale_mobile-former-285m-frozen_8xb2-12e_coco.py'

max_epochs = 36
param_scheduler = [dict(_base_.param_scheduler[0], end=max_epochs, milestones=[30])]
train_cfg = dict(max_epochs=max_epochs)
