_base_ = ['./qbheat_mobile-former-285m_8xb128-amp-coslr-200e_in1k.py', '../_base_/targets/hog.py']

model = _base_.hog
