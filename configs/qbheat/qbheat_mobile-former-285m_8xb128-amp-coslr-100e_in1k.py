_base_ = './qbheat_mobile-former-285m_8xb128-amp-coslr-200e_in1k.py'

max_epochs = 100
warmup_epochs = 10
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
