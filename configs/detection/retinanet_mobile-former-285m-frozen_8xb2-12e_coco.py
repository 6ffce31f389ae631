_base_ = [
    '../_base_/models/retinanet_mobile-former-285m-frozen.py',
    '../_base_/datasets/coco_1x.py',
    '../_base_/schedules/detection_sgd_12e.py',
    '../_base_/detection_runtime.py',
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
