_base_ = ['./qbheat_mobile-former-52m_demo.py', '../_base_/targets/hog.py']

model = _base_.hog
