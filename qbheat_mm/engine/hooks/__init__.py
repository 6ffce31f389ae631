from .calibrate_bn_hook import CalibrateBNHook
from .check_dataset_hook import CheckDatasetHook
from .finite_loss_hook import FiniteLossHook
from .heat_statistics_hook import HeatStatisticsHook
from .knn_hook import KnnHook
from .plain_checkpoint_hook import PlainCheckpointHook
from .reconstruction_hook import ReconstructionHook
from .skipped_pictures_hook import SkippedPicturesHook
from .validate_first_hook import ValidateFirstHook

__all__ = [
    'CalibrateBNHook',
    'CheckDatasetHook',
    'FiniteLossHook',
    'HeatStatisticsHook',
    'KnnHook',
    'PlainCheckpointHook',
    'ReconstructionHook',
    'SkippedPicturesHook',
    'ValidateFirstHook',
]
