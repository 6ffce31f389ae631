_base_ = './qbheat_mobile-former-285m_1xb128-coslr-12e_imagenette.py'

max_epochs = 200
warmup_epochs = 5
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
