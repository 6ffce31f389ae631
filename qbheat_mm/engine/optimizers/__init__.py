from .multi_rate_constructor import MultiRateConstructor
from .trainable_params_constructor import TrainableParamsConstructor

__all__ = ['MultiRateConstructor', 'TrainableParamsConstructor']
