# The pre-training of the demo: 52m, 128 px, a quarter of 4 x 4 features, some minutes on two cores.
_base_ = [
    '../_base_/models/qbheat_mobile-former-52m.py',
    '../_base_/qbheat_runtime.py',
]

from qbheat_mm.environment import read_env  # noqa: E402

img_size = 128
max_epochs = 14
data_root = read_env('DATA_ROOT', 'work_dirs/demo/data')
# larger than the default: the results of the demo were measured with this decoder
model = dict(decoder=dict(embed_dims=192, depth=2, num_heads=6))

pack = dict(type='PackInputs', meta_keys=('img_path', 'visible_origin'))
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
        with_label=False,
        pipeline=[
            dict(type='LoadImage', ignore_empty=True),
            dict(
                type='RandomResizedCrop',
                scale=img_size,
                crop_ratio_range=(0.5, 1.0),
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='RandomFlip', prob=0.5),
            dict(type='QuarterMask'),
            pack,
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
        with_label=False,
        test_mode=True,
        pipeline=[
            dict(type='LoadImage'),
            dict(type='ResizeEdge', scale=img_size, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=img_size),
            dict(type='QuarterMask', visible='top_left'),
            pack,
        ],
    ),
)
val_evaluator = dict(type='ReconstructionLoss')
val_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='TrainableParamsOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=2),
    invalid_loss=dict(interval=10),
    val_before_train=dict(type='ValBeforeTrainHook'),
)
