# DETR on a frozen backbone; which pre-training is one field:
#   --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth
_base_ = [
    '../_base_/models/detr_mobile-former-294m-frozen.py',
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/detr_adamw_150e.py',
    '../_base_/detection_runtime.py',
]
