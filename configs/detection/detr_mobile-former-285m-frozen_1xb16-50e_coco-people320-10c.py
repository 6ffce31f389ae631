_base_ = [
    '../_base_/models/detr_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_people320.py',
    '../_base_/schedules/detr_adamw_50e.py',
    '../_base_/detection_runtime.py',
]
model = dict(bbox_head=dict(num_classes=_base_.num_classes))
# intended for about ten minutes on one modern GPU; not measured
train_cfg = dict(val_interval=10)
