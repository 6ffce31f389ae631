_base_ = [
    '../_base_/models/dino_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_detr.py',
    '../_base_/schedules/detr_adamw_24e.py',
    '../_base_/detection_runtime.py',
]
