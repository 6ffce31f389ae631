# HOG targets instead of the paper's pixels, our choice, for any QB-Heat config with 16-px patches:
#   _base_ = ['./qbheat_....py', '../_base_/targets/hog.py']
#   model = _base_.hog
hog = dict(
    target_generator=dict(type='PatchHOGGenerator', patch_size=16, nbins=9, pool=8),
    decoder=dict(out_channels=3 * 9 * (16 // 8) ** 2),  # three colors, nine bins, four cells of 8 px
    head=dict(norm_pix=False),
)
