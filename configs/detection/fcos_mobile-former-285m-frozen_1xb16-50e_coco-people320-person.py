# The heavy head of a pair: FCOS as published, for the comparison of pre-trainings beside fcos-light.
_base_ = [
    '../_base_/models/fcos_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_people320.py',
    '../_base_/schedules/detection_sgd_12e.py',
    '../_base_/detection_runtime.py',
]
classes = ('person',)
dataset = dict(metainfo=dict(classes=classes))
model = dict(bbox_head=dict(num_classes=len(classes)))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)

max_epochs = 50
optim_wrapper = dict(
    optimizer=dict(lr=0.01),
    paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='ConstantLR', factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(_base_.param_scheduler[1], end=max_epochs, milestones=[33, 46]),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)
