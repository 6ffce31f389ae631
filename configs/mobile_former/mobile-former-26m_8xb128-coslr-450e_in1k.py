_base_ = [
    '../_base_/models/mobile-former-294m.py',
    '../_base_/datasets/imagenet_bs128_mobile_former.py',
    '../_base_/schedules/imagenet_bs1024_adamw_coslr_450e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='26m'),
    head=dict(in_channels=96, token_dims=128, hidden_channels=1024, groups=4, dropout=0.1),
)

# no random erasing
train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomErasing']
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=8e-4, weight_decay=0.08))
