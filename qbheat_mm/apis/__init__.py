from .inferencer import QBHeatInferencer

__all__ = ['QBHeatInferencer']
