_base_ = ['./qbheat_mobile-former-52m_1xb128-coslr-200e_imagenette.py', '../_base_/targets/hog.py']

model = _base_.hog
