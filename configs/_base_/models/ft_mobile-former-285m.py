_base_ = './ft_mobile-former-52m.py'

model = dict(backbone=dict(arch='285m'), head=dict(in_channels=160))
