from .loading import LoadImage, decode_image
from .quarter_mask import QuarterMask
from .random_resized_crop import LoadReducedRandomResizedCrop, TorchRandomResizedCrop

__all__ = ['LoadImage', 'LoadReducedRandomResizedCrop', 'QuarterMask', 'TorchRandomResizedCrop', 'decode_image']
