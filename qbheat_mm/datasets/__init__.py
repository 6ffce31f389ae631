from .folder import FolderDataset
from .transforms import QuarterMask

__all__ = ['FolderDataset', 'QuarterMask']
