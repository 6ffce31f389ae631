from .backbones import MobileFormer
from .heads import PixelDecoder, PixelHead
from .necks import HeatNeck
from .selfsup import QBHeat

__all__ = ['HeatNeck', 'MobileFormer', 'PixelDecoder', 'PixelHead', 'QBHeat']
