from .backbones import MobileFormer

__all__ = ['MobileFormer']
