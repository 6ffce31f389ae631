# mmdet's DINO with four levels. Its 900 queries need images with at least 900 positions: 256 x 256 px have 1,360.
_base_ = './deformable-detr_mobile-former-285m-frozen.py'
ffn = dict(feedforward_channels=2048, ffn_drop=0.0)
model = dict(
    type='DINO',
    num_queries=900,
    with_box_refine=True,
    as_two_stage=True,
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=4, dropout=0.0), ffn_cfg=ffn)),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.0),
            cross_attn_cfg=dict(num_levels=4, dropout=0.0),
            ffn_cfg=ffn,
        ),
    ),
    positional_encoding=dict(offset=0.0, temperature=20),
    bbox_head=dict(type='DINOHead', loss_cls=dict(loss_weight=1.0)),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100),
    ),
    test_cfg=dict(max_per_img=300),
)
del ffn
