# Fine-tuning of the backbone in a checkpoint:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = [
    '../_base_/models/ft_mobile-former-294m.py',
    '../_base_/datasets/imagenet_bs128_probe.py',
    '../_base_/schedules/ft_adamw_coslr_100e.py',
    '../_base_/default_runtime.py',
]
