# Four transformer blocks instead of one.
_base_ = './mobile-former-52m_1xb128-tran-1-coslr-20e_imagenette.py'

model = dict(head=dict(depth=4))
