from .load_picture import LoadPicture, decode_picture
from .quarter_mask import QuarterMask

__all__ = ['LoadPicture', 'QuarterMask', 'decode_picture']
