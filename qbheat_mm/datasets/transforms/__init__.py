from .loading import LoadImage, decode_image
from .quarter_mask import QuarterMask
from .random_resized_crop import LoadReducedRandomResizedCrop, TorchRandomResizedCrop
from .views import (
    DrawColorJitter,
    DrawGaussianBlur,
    DrawMultiView,
    DrawPackInputs,
    DrawRandomFlip,
    DrawRandomGrayscale,
    DrawRandomResizedCrop,
)

__all__ = [
    'DrawColorJitter',
    'DrawGaussianBlur',
    'DrawMultiView',
    'DrawPackInputs',
    'DrawRandomFlip',
    'DrawRandomGrayscale',
    'DrawRandomResizedCrop',
    'LoadImage',
    'LoadReducedRandomResizedCrop',
    'QuarterMask',
    'TorchRandomResizedCrop',
    'decode_image',
]
