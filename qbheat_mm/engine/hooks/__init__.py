from .calibrate_bn_hook import CalibrateBNHook
from .check_dataset_hook import CheckDatasetHook
from .finite_loss_hook import FiniteLossHook
from .plain_checkpoint_hook import PlainCheckpointHook
from .skipped_pictures_hook import SkippedPicturesHook
from .validate_first_hook import ValidateFirstHook

__all__ = [
    'CalibrateBNHook',
    'CheckDatasetHook',
    'FiniteLossHook',
    'PlainCheckpointHook',
    'SkippedPicturesHook',
    'ValidateFirstHook',
]
