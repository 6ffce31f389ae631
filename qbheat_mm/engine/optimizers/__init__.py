from .multi_rate_constructor import MultiRateConstructor

__all__ = ['MultiRateConstructor']
