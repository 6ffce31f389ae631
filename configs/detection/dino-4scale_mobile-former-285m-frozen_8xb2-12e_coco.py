_base_ = [
    '../_base_/models/dino_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/detr_adamw_50e.py',
    '../_base_/detection_runtime.py',
]

max_epochs = 12
param_scheduler = [dict(_base_.param_scheduler[0], end=max_epochs, milestones=[11])]
train_cfg = dict(max_epochs=max_epochs)
