# For reference: torchvision's supervised ResNet-50, all of it frozen.
#     model = dict(backbone=dict(_delete_=True, out_indices=(3,), **_base_.resnet), neck=dict(in_channels=[2048]))
resnet = dict(
    type='ResNet',
    depth=50,
    num_stages=4,
    frozen_stages=4,
    norm_cfg=dict(type='BN', requires_grad=False),
    norm_eval=True,
    style='pytorch',
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
