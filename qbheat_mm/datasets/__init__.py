from .feature_dataset import FeatureDataset
from .folder import FolderDataset
from .transforms import FastRandomResizedCrop, LoadReducedRandomResizedCrop, QuarterMask

__all__ = [
    'FastRandomResizedCrop',
    'FeatureDataset',
    'FolderDataset',
    'LoadReducedRandomResizedCrop',
    'QuarterMask',
]
