# A linear probe of the small size: 20 epochs; lr for a batch of 128.
_base_ = './linear_sgd_coslr_90e.py'

max_epochs = 20
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(_base_.param_scheduler[0], end=max_epochs)]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=128)
