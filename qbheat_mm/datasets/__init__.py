from .feature_dataset import FeatureDataset
from .image_folder import ImageFolderDataset
from .transforms import LoadImage, LoadReducedRandomResizedCrop, QuarterMask, TorchRandomResizedCrop

__all__ = [
    'FeatureDataset',
    'ImageFolderDataset',
    'LoadImage',
    'LoadReducedRandomResizedCrop',
    'QuarterMask',
    'TorchRandomResizedCrop',
]
