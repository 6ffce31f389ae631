# The light head of the pair: 64 channels in place of 256, and one convolution in each branch in place of four.
_base_ = './fcos_mobile-former-285m-frozen_1xb16-50e_coco-people320-person.py'
model = dict(
    neck=dict(out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=1),
)
