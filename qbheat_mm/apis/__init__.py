from .inferencer import QBHeatInferencer, list_pictures

__all__ = ['QBHeatInferencer', 'list_pictures']
