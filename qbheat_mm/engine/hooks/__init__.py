from .atomic_checkpoint_hook import AtomicCheckpointHook
from .calibrate_bn_hook import CalibrateBNHook
from .class_check_hook import ClassCheckHook
from .compile_hook import CompileHook
from .dataset_check_hook import DatasetCheckHook
from .deterministic_seed_hook import DeterministicSeedHook
from .effective_batch_hook import EffectiveBatchHook
from .heat_statistics_hook import HeatStatisticsHook
from .invalid_loss_hook import InvalidLossHook
from .knn_hook import KnnHook
from .plain_checkpoint_hook import PlainCheckpointHook
from .preemption_hook import PreemptionHook
from .queue_check_hook import QueueCheckHook
from .reconstruction_hook import ReconstructionHook
from .skipped_images_hook import SkippedImagesHook
from .throughput_hook import ThroughputHook
from .val_before_train_hook import ValBeforeTrainHook
from .whitening_hook import WhiteningHook

__all__ = [
    'AtomicCheckpointHook',
    'CalibrateBNHook',
    'ClassCheckHook',
    'CompileHook',
    'DatasetCheckHook',
    'DeterministicSeedHook',
    'EffectiveBatchHook',
    'HeatStatisticsHook',
    'InvalidLossHook',
    'KnnHook',
    'PlainCheckpointHook',
    'PreemptionHook',
    'QueueCheckHook',
    'ReconstructionHook',
    'SkippedImagesHook',
    'ThroughputHook',
    'ValBeforeTrainHook',
    'WhiteningHook',
]
