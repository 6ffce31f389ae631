# The same probe without augmentation, whose features need computing only once: tools/train.py --cache-features.
_base_ = './mobile-former-285m_1xb128-linear-coslr-20e_imagenette.py'

train_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
