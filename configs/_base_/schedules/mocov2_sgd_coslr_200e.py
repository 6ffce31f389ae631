# The schedule of MoCo-v2: SGD, cosine, 200 epochs, batch 256.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.03, weight_decay=1e-4, momentum=0.9))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=200, by_epoch=True, begin=0, end=200)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200)
# The learning rate is for a total batch of 256 and scales linearly with it.
auto_scale_lr = dict(base_batch_size=256, enable=True)
