from .backbones import IdentityBackbone, MobileFormer
from .heads import LRSweepHead, MobileFormerClsHead, QBHeatPretrainHead, TransformerProbeHead
from .necks import HeatNeck, QBHeatDecoder, Whitening
from .selfsup import QBHeat
from .target_generators import LowFreqTargetGenerator, PatchHOGGenerator
from .utils import ViewDataPreprocessor

__all__ = [
    'HeatNeck',
    'IdentityBackbone',
    'LRSweepHead',
    'LowFreqTargetGenerator',
    'MobileFormer',
    'MobileFormerClsHead',
    'PatchHOGGenerator',
    'QBHeat',
    'QBHeatDecoder',
    'QBHeatPretrainHead',
    'TransformerProbeHead',
    'ViewDataPreprocessor',
    'Whitening',
]
