from .feature_dataset import FeatureDataset
from .image_folder import ImageFolderDataset
from .packed import PackedImageDataset
from .transforms import LoadImage, LoadReducedRandomResizedCrop, QuarterMask, TorchRandomResizedCrop

__all__ = [
    'FeatureDataset',
    'ImageFolderDataset',
    'LoadImage',
    'LoadReducedRandomResizedCrop',
    'PackedImageDataset',
    'QuarterMask',
    'TorchRandomResizedCrop',
]
