# Pre-training on any folder of images, without annotations or classes, on one GPU or a CPU:
#   DATA_ROOT=/my/photos python tools/train.py configs/qbheat/qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py
_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/datasets/folder_bs64_qbheat.py',
    '../_base_/schedules/adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]

optim_wrapper = dict(type='OptimWrapper')
max_epochs = 100
warmup_epochs = 5
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs)
