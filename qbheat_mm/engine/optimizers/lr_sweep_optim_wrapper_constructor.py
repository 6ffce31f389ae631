"""One learning rate per head of a LRSweepHead."""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ...models.heads import LRSweepHead


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LRSweepOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """One parameter group per head with that head's learning rate; the optimizer's own ``lr`` is not used.

    Schedulers and ``auto_scale_lr`` scale each group's rate. Other trainable parameters and gradient clipping would
    couple the heads, so both are refused.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper.

        Raises:
            ValueError: If the heads would not be independent.
        """
        model = getattr(model, 'module', model)
        if not isinstance(model.head, LRSweepHead):
            raise ValueError(
                f'LRSweepOptimWrapperConstructor needs a LRSweepHead, and model.head is {type(model.head)}.'
            )
        shared = [
            name for name, each in model.named_parameters() if each.requires_grad and not name.startswith('head.')
        ]
        if shared:
            raise ValueError(
                f'Several learning rates at once are for heads on frozen features, but {len(shared)} other parameters '
                f'learn, the first of them {shared[0]}: freeze the backbone (frozen_stages).'
            )
        if self.optim_wrapper_cfg.get('clip_grad') or self.paramwise_cfg:
            raise ValueError('LRSweepOptimWrapperConstructor takes neither optim_wrapper.clip_grad nor paramwise_cfg.')
        groups = [dict(params=list(head.parameters()), lr=lr) for head, lr in zip(model.head.heads, model.head.lrs)]
        optimizer = OPTIMIZERS.build(dict(self.optimizer_cfg, params=groups))
        return OPTIM_WRAPPERS.build(dict(dict(type='OptimWrapper') | self.optim_wrapper_cfg, optimizer=optimizer))
