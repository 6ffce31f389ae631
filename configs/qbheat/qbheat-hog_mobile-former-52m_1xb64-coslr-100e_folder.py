# Pre-training on any folder of images, without annotations or classes, on one GPU or a CPU:
#   DATA_ROOT=/my/photos python tools/train.py configs/qbheat/qbheat-hog_mobile-former-52m_1xb64-coslr-100e_folder.py
_base_ = ['./qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py', '../_base_/targets/hog.py']

model = _base_.hog
