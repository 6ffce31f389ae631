# Frozen detection of people on a CPU: the light FCOS head on 52m's strides 8 and 16, photos of at most 224 px.
_base_ = './fcos-light_mobile-former-285m-frozen_1xb16-50e_coco-people320-person.py'
max_epochs = 12
scale = (224, 224)
model = dict(
    backbone=dict(arch='52m', output_stride=16, out_indices=(1, 3), frozen_stages=4),
    neck=dict(in_channels=[24, 96], num_outs=3),
    bbox_head=dict(strides=[8, 16, 32], regress_ranges=((-1, 48), (48, 96), (96, 1e8))),
)
resize = dict(type='Resize', scale=scale, keep_ratio=True)
load, annotations, flip, _, pack = _base_.train_pipeline
train_pipeline = [load, annotations, resize, flip, pack]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[2:]]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=6)
