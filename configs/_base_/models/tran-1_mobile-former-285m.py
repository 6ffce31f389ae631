_base_ = './tran-1_mobile-former-52m.py'

model = dict(backbone=dict(arch='285m', frozen_stages=3), head=dict(in_channels=160, embed_dims=192, num_heads=6))
