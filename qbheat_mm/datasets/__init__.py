from .feature_dataset import FeatureDataset
from .folder import FolderDataset
from .transforms import QuarterMask

__all__ = ['FeatureDataset', 'FolderDataset', 'QuarterMask']
