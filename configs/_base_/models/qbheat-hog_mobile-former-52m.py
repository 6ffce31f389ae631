# HOG instead of the paper's pixels, our choice: a patch has four cells of three colors with nine bins each.
_base_ = './qbheat_mobile-former-52m.py'

model = dict(
    target_generator=dict(type='PatchHOGGenerator', patch_size=16, nbins=9, pool=8),
    decoder=dict(out_channels=3 * 9 * (16 // 8) ** 2),
    head=dict(norm_pix=False),
)
