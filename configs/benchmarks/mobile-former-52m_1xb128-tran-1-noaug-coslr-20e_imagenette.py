# The same probe without augmentation, so that features can be cached: tools/train.py CONFIG --cache-features FOLDER.
_base_ = './mobile-former-52m_1xb128-tran-1-coslr-20e_imagenette.py'

train_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
