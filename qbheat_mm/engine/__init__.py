from . import hooks
from .constructor import TrainableParamsConstructor

__all__ = ['TrainableParamsConstructor', 'hooks']
