from .mobile_former_cls_head import MobileFormerClsHead
from .pixel_head import PixelDecoder, PixelHead

__all__ = ['MobileFormerClsHead', 'PixelDecoder', 'PixelHead']
