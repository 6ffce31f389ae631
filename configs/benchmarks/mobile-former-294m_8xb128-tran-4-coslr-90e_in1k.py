# Four transformer blocks instead of one.
_base_ = './mobile-former-294m_8xb128-tran-1-coslr-90e_in1k.py'

model = dict(head=dict(depth=4))
