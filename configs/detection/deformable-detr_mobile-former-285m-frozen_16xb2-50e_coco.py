_base_ = [
    '../_base_/models/deformable-detr_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/deformable-detr_adamw_50e.py',
    '../_base_/detection_runtime.py',
]
