"""An optimizer for the trainable parameters alone, in few groups."""

from __future__ import annotations

import logging
from types import SimpleNamespace

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableParamsOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give the optimizer the parameters that require a gradient, and no others.

    mmengine's constructor includes frozen ones, or warns of each with a ``paramwise_cfg``. This one warns once of
    ``paramwise_cfg.custom_keys`` that set a learning rate for frozen parameters only.

    With a ``paramwise_cfg`` mmengine makes one group per parameter, hundreds of them, which optimizers process one by
    one. Here parameters with the same settings share a group.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper.

        Raises:
            ValueError: If no parameter of the model requires a gradient.
        """
        model = getattr(model, 'module', model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise ValueError(f'No parameter of {type(model).__name__} requires a gradient: there is nothing to train.')
        if not self.paramwise_cfg:
            return super().__call__(SimpleNamespace(parameters=lambda: trainable))
        self._warn_of_frozen(model)
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        """Add the parameters of a module, unless it is entirely frozen."""
        if any(parameter.requires_grad for parameter in module.parameters()):
            super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            params[:] = merge_groups(params)

    def _warn_of_frozen(self, model: nn.Module) -> None:
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        in_order = sorted(sorted(custom_keys), key=len, reverse=True)  # the first that matches counts
        trained: dict[str, bool] = {}
        for name, parameter in model.named_parameters():
            key = next((key for key in in_order if key in name), None)
            trained[key] = trained.get(key, False) or parameter.requires_grad
        idle = [repr(key) for key in custom_keys if 'lr_mult' in custom_keys[key] and trained.get(key) is False]
        if idle:
            print_log(
                f'paramwise_cfg.custom_keys sets a learning rate for {", ".join(idle)}, but all of these parameters '
                'are frozen, so it has no effect. Train them (model.backbone.frozen_stages=-1 for a backbone), or '
                'remove the entry.',
                logger='current',
                level=logging.WARNING,
            )


def merge_groups(groups: list[dict]) -> list[dict]:
    """Merge parameter groups with the same settings, in the order of their first parameters."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = tuple(sorted((key, value) for key, value in group.items() if key != 'params'))
        merged.setdefault(settings, dict(group, params=[]))['params'] += group['params']
    return list(merged.values())
