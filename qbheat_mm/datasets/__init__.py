from .feature_dataset import FeatureDataset
from .folder import FolderDataset
from .transforms import LoadPicture, QuarterMask

__all__ = ['FeatureDataset', 'FolderDataset', 'LoadPicture', 'QuarterMask']
