from .feature_input import FeatureInput
from .mobile_former import MobileFormer

__all__ = ['FeatureInput', 'MobileFormer']
