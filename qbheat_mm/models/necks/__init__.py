from .heat_neck import HeatNeck

__all__ = ['HeatNeck']
