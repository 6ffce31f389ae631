from importlib.util import find_spec

from .reconstruction import ReconstructionLoss

__all__ = ['ReconstructionLoss']

if find_spec('mmdet'):  # pre-training and probing do without
    from .coco_box_metric import CocoBoxMetric

    __all__ += ['CocoBoxMetric']
