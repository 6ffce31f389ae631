from .backbones import FeatureInput, MobileFormer
from .heads import MobileFormerClsHead, MultiRateHead, PixelDecoder, PixelHead, TransformerProbeHead
from .necks import HeatNeck, Whitening
from .selfsup import QBHeat

__all__ = [
    'FeatureInput',
    'HeatNeck',
    'MobileFormer',
    'MobileFormerClsHead',
    'MultiRateHead',
    'PixelDecoder',
    'PixelHead',
    'QBHeat',
    'TransformerProbeHead',
    'Whitening',
]
