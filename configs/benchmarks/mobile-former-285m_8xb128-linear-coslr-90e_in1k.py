# Linear probe of the backbone in a checkpoint:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = [
    '../_base_/models/linear_mobile-former-285m.py',
    '../_base_/datasets/imagenet_bs128_probe.py',
    '../_base_/schedules/linear_sgd_coslr_90e.py',
    '../_base_/default_runtime.py',
]
