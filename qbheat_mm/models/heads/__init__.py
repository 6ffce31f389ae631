from .mobile_former_cls_head import MobileFormerClsHead
from .multi_rate_head import MultiRateHead
from .pixel_head import PixelDecoder, PixelHead
from .transformer_probe_head import TransformerProbeHead

__all__ = ['MobileFormerClsHead', 'MultiRateHead', 'PixelDecoder', 'PixelHead', 'TransformerProbeHead']
