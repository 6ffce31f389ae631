"""torch.compile for parts of a model."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from ...arguments import check_arguments


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile parts of the model with torch.compile before training.

    They are compiled in place, so that parameters keep their names and checkpoints fit with and without this hook.
    mmengine's ``compile=True`` compiles the whole ``train_step``, whose optimizer and logging break the graph.

    Args:
        modules: Names as in ``named_modules``. Defaults to QB-Heat's encoder and decoder.
        **kwargs: Arguments of ``torch.compile``.

    Raises:
        AttributeError: If the model lacks one of them.
    """

    priority = 'VERY_LOW'

    @check_arguments
    def __init__(self, modules: Sequence[str] = ('backbone', 'decoder'), **kwargs) -> None:
        self.modules = tuple(modules)
        self.kwargs = kwargs

    def before_train(self, runner: Runner) -> None:
        """Mark the modules, which are compiled on their first call."""
        model = get_ori_model(runner.model)
        for name in self.modules:
            model.get_submodule(name).compile(**self.kwargs)
