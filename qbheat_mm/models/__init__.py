from .backbones import MobileFormer
from .heads import MobileFormerClsHead, PixelDecoder, PixelHead
from .necks import HeatNeck
from .selfsup import QBHeat

__all__ = ['HeatNeck', 'MobileFormer', 'MobileFormerClsHead', 'PixelDecoder', 'PixelHead', 'QBHeat']
