_base_ = [
    '../_base_/models/mocov2_mobile-former-285m.py',
    '../_base_/datasets/imagenette_bs128_mocov2.py',
    '../_base_/schedules/imagenette_adamw_coslr_200e.py',
    '../_base_/mocov2_runtime.py',
]

# A dataset of ten thousand images wants a smaller queue and a faster key encoder.
model = dict(queue_len=4096, momentum=0.01)
