from .inferencer import QBHeatInferencer, list_images

__all__ = ['QBHeatInferencer', 'list_images']
