# Probe with one transformer block and a linear classifier on the backbone in a checkpoint:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = [
    '../_base_/models/tran-1_mobile-former-52m.py',
    '../_base_/datasets/imagenet_bs128_probe.py',
    '../_base_/schedules/tran_adamw_coslr_90e.py',
    '../_base_/default_runtime.py',
]
