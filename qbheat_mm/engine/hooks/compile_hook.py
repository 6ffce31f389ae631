"""torch.compile for parts of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import nn

from ...arguments import check_arguments


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile parts of the model with torch.compile before training.

    They are compiled in place, so that parameters keep their names and checkpoints fit with and without this hook.
    mmengine's ``compile=True`` compiles the whole ``train_step``, whose optimizer and logging break the graph.

    Args:
        modules: Names as in ``named_modules``, or of a method of one of these. Defaults to QB-Heat's encoder, neck,
            decoder and loss.
        **kwargs: Arguments of ``torch.compile``: ``mode='reduce-overhead'`` replays CUDA graphs, so that a small batch
            does not wait for kernel launches.

    Raises:
        AttributeError: If the model lacks one of them.
    """

    priority = 'VERY_LOW'

    @check_arguments
    def __init__(self, modules: Sequence[str] = ('backbone', 'neck', 'decoder', 'head.loss'), **kwargs) -> None:
        self.modules = tuple(modules)
        self.kwargs = kwargs

    def before_train(self, runner: Runner) -> None:
        """Mark the parts, which are compiled on their first call."""
        compile_parts(get_ori_model(runner.model), self.modules, **self.kwargs)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Tell CUDA graphs that the memory of the last iteration's outputs can be overwritten."""
        torch.compiler.cudagraph_mark_step_begin()


def compile_parts(model: nn.Module, names: Sequence[str], **kwargs) -> None:
    """Compile modules and methods of a model in place.

    Raises:
        AttributeError: If the model lacks one of them.
    """
    for name in names:
        owner_name, _, attribute = name.rpartition('.')
        owner = model.get_submodule(owner_name)
        part = getattr(owner, attribute)
        if isinstance(part, nn.Module):
            part.compile(**kwargs)
        else:
            setattr(owner, attribute, torch.compile(part, **kwargs))
