from .calibrate_bn_hook import CalibrateBNHook
from .check_classes_hook import CheckClassesHook
from .check_dataset_hook import CheckDatasetHook
from .check_queue_hook import CheckQueueHook
from .checkpoint_guard_hook import CheckpointGuardHook
from .compile_hook import CompileHook
from .draws_hook import DrawsHook
from .effective_batch_hook import EffectiveBatchHook
from .finite_loss_hook import FiniteLossHook
from .heat_statistics_hook import HeatStatisticsHook
from .knn_hook import KnnHook
from .plain_checkpoint_hook import PlainCheckpointHook
from .reconstruction_hook import ReconstructionHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .skipped_pictures_hook import SkippedPicturesHook
from .throughput_hook import ThroughputHook
from .validate_first_hook import ValidateFirstHook
from .whitening_hook import WhiteningHook

__all__ = [
    'CalibrateBNHook',
    'CheckClassesHook',
    'CheckDatasetHook',
    'CheckQueueHook',
    'CheckpointGuardHook',
    'CompileHook',
    'DrawsHook',
    'EffectiveBatchHook',
    'FiniteLossHook',
    'HeatStatisticsHook',
    'KnnHook',
    'PlainCheckpointHook',
    'ReconstructionHook',
    'SafeCheckpointHook',
    'SkippedPicturesHook',
    'ThroughputHook',
    'ValidateFirstHook',
    'WhiteningHook',
]
