from .heat_neck import HeatNeck
from .qbheat_decoder import QBHeatDecoder
from .whitening import Whitening

__all__ = ['HeatNeck', 'QBHeatDecoder', 'Whitening']
