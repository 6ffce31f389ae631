_base_ = './conditional-detr_mobile-former-285m-frozen_1xb16-50e_coco-people320-10c.py'
classes = ('person',)
dataset = dict(metainfo=dict(classes=classes))
model = dict(bbox_head=dict(num_classes=len(classes)))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
