from .backbone import FeatureBackbone, load_backbone
from .inferencer import QBHeatInferencer

__all__ = ['FeatureBackbone', 'QBHeatInferencer', 'load_backbone']
