from importlib.util import find_spec

from .multi_rate_accuracy import MultiRateAccuracy
from .reconstruction import ReconstructionLoss

__all__ = ['MultiRateAccuracy', 'ReconstructionLoss']

if find_spec('mmdet'):  # pre-training and probing do without
    from .coco_box_metric import CocoBoxMetric

    __all__ += ['CocoBoxMetric']
