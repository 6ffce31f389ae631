from .quarter_mask import QuarterMask
from .resized_crop import FastRandomResizedCrop, LoadReducedRandomResizedCrop

__all__ = ['FastRandomResizedCrop', 'LoadReducedRandomResizedCrop', 'QuarterMask']
