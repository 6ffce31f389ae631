from .heat_neck import HeatNeck
from .whitening import Whitening

__all__ = ['HeatNeck', 'Whitening']
