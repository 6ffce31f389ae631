from .backbones import MobileFormer
from .heads import MobileFormerClsHead

__all__ = ['MobileFormer', 'MobileFormerClsHead']
