"""Compile parts of a model, by config."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile parts of the model with torch.compile before training.

    The parts are compiled in place: parameters keep their names, checkpoints fit with and without. mmengine's own
    ``compile=True`` compiles the whole ``train_step``, optimizer and logging included, which breaks its graph.

    Args:
        modules: Names of the parts, as in ``named_modules``. Defaults to QB-Heat's encoder and decoder.
        **kwargs: Arguments of ``torch.compile``.

    Raises:
        AttributeError: If the model has no such part.
    """

    priority = 'VERY_LOW'

    def __init__(self, modules: Sequence[str] = ('backbone', 'decoder'), **kwargs) -> None:
        self.modules = tuple(modules)
        self.kwargs = kwargs

    def before_train(self, runner: Runner) -> None:
        """Mark the parts; they are compiled when they first run."""
        model = get_ori_model(runner.model)
        for name in self.modules:
            model.get_submodule(name).compile(**self.kwargs)
