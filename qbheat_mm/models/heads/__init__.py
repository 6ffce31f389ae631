from .lr_sweep_head import LRSweepHead
from .mobile_former_cls_head import MobileFormerClsHead
from .qbheat_head import QBHeatPretrainHead
from .transformer_probe_head import TransformerProbeHead

__all__ = ['LRSweepHead', 'MobileFormerClsHead', 'QBHeatPretrainHead', 'TransformerProbeHead']
