from .quarter_mask import QuarterMask

__all__ = ['QuarterMask']
