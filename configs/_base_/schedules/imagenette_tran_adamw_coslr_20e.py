# A probe with transformer blocks of the small size: 20 epochs; lr for a batch of 128.
_base_ = './tran_adamw_coslr_90e.py'

max_epochs = 20
param_scheduler = [
    dict(_base_.param_scheduler[0], end=1),
    dict(_base_.param_scheduler[1], begin=1, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=128)
