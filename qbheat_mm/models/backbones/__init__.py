from .identity_backbone import IdentityBackbone
from .mobile_former import MobileFormer

__all__ = ['IdentityBackbone', 'MobileFormer']
