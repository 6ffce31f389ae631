_base_ = './tran-1_mobile-former-52m.py'

model = dict(backbone=dict(arch='294m'), head=dict(in_channels=192, embed_dims=192, num_heads=6))
