# The backbone of weights/ as a feature extractor, not for training:
#   mmpretrain.get_model('qbheat-hog_mobile-former-285m_24e_imagenette', pretrained=True).extract_feat(images)
_base_ = [
    '../_base_/models/linear_mobile-former-285m.py',
    '../_base_/datasets/imagenette_bs128_probe.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(frozen_stages=-1, init_cfg=None),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=None,
)
# mmpretrain's FeatureExtractor loads images itself, and removes this transform, not LoadImage, from the pipeline.
test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), *_base_.test_pipeline[1:]]))
