_base_ = [
    '../_base_/models/mocov2_mobile-former-52m.py',
    '../_base_/datasets/imagenette_bs128_mocov2.py',
    '../_base_/schedules/imagenette_adamw_coslr_12e.py',
    '../_base_/mocov2_runtime.py',
]

# A smaller queue and a faster key encoder for a dataset of ten thousand images.
model = dict(queue_len=4096, momentum=0.01)
