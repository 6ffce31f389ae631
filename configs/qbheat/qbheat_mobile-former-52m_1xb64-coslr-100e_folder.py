# Pre-train on any folder of images, no annotation, no classes, on one GPU or none:
#   DATA_ROOT=/my/photos python tools/train.py configs/qbheat/qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py
_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/datasets/folder_bs64_qbheat.py',
    '../_base_/schedules/adamw_coslr_200e.py',
    '../_base_/qbheat_runtime.py',
]

max_epochs = 100
warmup_epochs = 5
optim_wrapper = dict(type='OptimWrapper')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=warmup_epochs, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs)
