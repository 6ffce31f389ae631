from .backbones import IdentityBackbone, MobileFormer
from .heads import LRSweepHead, MobileFormerClsHead, QBHeatPretrainHead, TransformerProbeHead
from .necks import HeatNeck, QBHeatDecoder, Whitening
from .selfsup import QBHeat

__all__ = [
    'HeatNeck',
    'IdentityBackbone',
    'LRSweepHead',
    'MobileFormer',
    'MobileFormerClsHead',
    'QBHeat',
    'QBHeatDecoder',
    'QBHeatPretrainHead',
    'TransformerProbeHead',
    'Whitening',
]
