_base_ = './imagenette_adamw_coslr_12e.py'

max_epochs = 200
param_scheduler = [
    dict(_base_.param_scheduler[0], end=5),
    dict(_base_.param_scheduler[1], begin=5, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
