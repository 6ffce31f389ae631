from importlib.util import find_spec

from .lr_sweep_accuracy import LRSweepAccuracy
from .reconstruction_loss import ReconstructionLoss

__all__ = ['LRSweepAccuracy', 'ReconstructionLoss']

if find_spec('mmdet'):  # optional: pre-training and probes do not need it
    from .coco_bbox import CocoBBoxMetric

    __all__ += ['CocoBBoxMetric']
