from .load_picture import LoadPicture, decode_picture
from .quarter_mask import QuarterMask
from .resized_crop import FastRandomResizedCrop, LoadReducedRandomResizedCrop

__all__ = ['FastRandomResizedCrop', 'LoadPicture', 'LoadReducedRandomResizedCrop', 'QuarterMask', 'decode_picture']
