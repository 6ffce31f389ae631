# The 50 epochs of Conditional DETR and DAB-DETR; configs with other schedules change epochs and milestones. The
# backbone is frozen, so it has no learning rate of its own.
max_epochs = 50
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='TrainableParamsOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[40], gamma=0.1)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# 8 GPUs with 2 images each; the learning rate scales linearly with the total batch.
auto_scale_lr = dict(base_batch_size=16, enable=True)
