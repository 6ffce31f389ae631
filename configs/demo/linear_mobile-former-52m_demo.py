# The linear probe of the demo, on the pre-trained, frozen backbone:
#   --cfg-options model.backbone.init_cfg.checkpoint=...
_base_ = [
    '../_base_/models/linear_mobile-former-52m.py',
    '../_base_/schedules/linear_sgd_coslr_90e.py',
    '../_base_/default_runtime.py',
]

from qbheat_mm.environment import read_env  # noqa: E402

img_size = 128
max_epochs = 12
num_classes = 8
data_root = read_env('DATA_ROOT', 'work_dirs/demo/data')
model = dict(data_preprocessor=dict(num_classes=num_classes), head=dict(num_classes=num_classes))

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolderDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=[
            dict(type='LoadImage', ignore_empty=True),
            dict(type='RandomResizedCrop', scale=img_size, crop_ratio_range=(0.5, 1.0), backend='pillow'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolderDataset',
        data_root=data_root,
        data_prefix='val',
        test_mode=True,
        pipeline=[
            dict(type='LoadImage'),
            dict(type='ResizeEdge', scale=img_size, edge='short', backend='pillow'),
            dict(type='CenterCrop', crop_size=img_size),
            dict(type='PackInputs'),
        ],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, end=max_epochs, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
auto_scale_lr = dict(enable=False)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
