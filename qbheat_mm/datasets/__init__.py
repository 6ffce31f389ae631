from .feature_dataset import FeatureDataset
from .folder import FolderDataset
from .transforms import FastRandomResizedCrop, LoadPicture, LoadReducedRandomResizedCrop, QuarterMask

__all__ = [
    'FastRandomResizedCrop',
    'FeatureDataset',
    'FolderDataset',
    'LoadPicture',
    'LoadReducedRandomResizedCrop',
    'QuarterMask',
]
