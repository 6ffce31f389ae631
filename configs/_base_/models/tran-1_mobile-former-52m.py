# tran-1: one transformer block before the linear classifier, on the frozen feature map. One block is the paper's;
# its width and heads are our choice.
_base_ = './linear_mobile-former-52m.py'

model = dict(
    neck=None,
    head=dict(
        _delete_=True,
        type='TransformerProbeHead',
        num_classes=1000,
        in_channels=96,
        embed_dims=128,
        num_heads=4,
        depth=1,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
