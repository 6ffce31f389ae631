"""Stop at the first loss or gradient that is NaN or infinite, before it reaches a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from mmpretrain.utils import get_ori_model
from pydantic import PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from ...arguments import check_arguments
from ..runners import optim_wrappers


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stop the run when the loss or a gradient is NaN or infinite, before such weights reach a checkpoint.

    On a CPU the run stops before the optimizer uses the gradient. Reading a value from a GPU waits for it, so there
    the first invalid iteration is recorded on the device and read every ``interval`` iterations and before each
    checkpoint.

    Finite gradients can still produce weights or an optimizer state that are not finite. Weights are checked at the
    end of each epoch in every process, both in each checkpoint. (A model with buffers that are infinite on purpose
    cannot use this hook.)

    With float16, a gradient scaler skips steps to find its scale. These are allowed whatever the loss was, unless
    there are too many in a row.

    Args:
        interval: Iterations between two reads of what was recorded on a GPU.
        max_skips: Number of consecutive skipped steps that ends the run.

    Raises:
        FloatingPointError: With the iteration, the learning rate and the last checkpoint.
    """

    priority = 'NORMAL'  # before CheckpointHook, which is VERY_LOW

    @check_arguments
    def __init__(self, interval: PositiveInt = 50, max_skips: PositiveInt = 20) -> None:
        self.interval = interval
        self.max_skips = max_skips
        self._first: dict[str, Tensor] = {}  # what -> the first iteration at which it was not finite, or 0
        self._stepped, self._skips = False, 0

    def before_train(self, runner: Runner) -> None:
        """Check gradients before each step of an optimizer; there is none where a scaler skips it."""
        for wrapper in optim_wrappers(runner):
            wrapper.optimizer.register_step_pre_hook(partial(self._before_step, runner, wrapper))

    def _before_step(self, runner: Runner, wrapper: OptimWrapper, optimizer: Optimizer, *_) -> None:
        found_inf = getattr(optimizer, 'found_inf', None)
        if found_inf is not None and found_inf.item():
            return  # a fused optimizer is also called for a skipped step
        self._stepped = True
        norm = _gradient_norm(wrapper)
        if norm is not None:
            self._record(runner, 'loss or its gradient', torch.isfinite(norm))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Count skipped steps, and check the loss of the others."""
        stepped, self._stepped = self._stepped, False
        wrapper = optim_wrappers(runner)[0]
        scaler = getattr(wrapper, 'loss_scaler', None)  # of float16
        if scaler is not None and scaler.is_enabled() and not stepped:
            self._skips += wrapper.should_update()
            if self._skips >= self.max_skips:
                reason = f'skipped {self._skips} steps in a row, because the gradient overflows float16 at every scale'
                _stop(runner, f'The gradient scaler {reason}, up to', runner.iter + 1)
        else:
            self._skips = 0
            if isinstance(outputs, dict) and isinstance(outputs.get('loss'), Tensor):
                self._record(runner, 'loss', torch.isfinite(outputs['loss'].detach()).all())
        if self.every_n_train_iters(runner, self.interval) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._check_records(runner)

    def _record(self, runner: Runner, what: str, finite: Tensor) -> None:
        """Record, on the device, the iteration at which ``what`` was not finite for the first time."""
        now = torch.where(finite, 0, runner.iter + 1)
        first = self._first.get(what, torch.zeros_like(now))
        self._first[what] = torch.where(first > 0, first, now)
        if not _has_to_wait(finite):
            self._check_records(runner)

    def _check_records(self, runner: Runner) -> None:
        for what, first in self._first.items():
            if iteration := int(first):
                _stop(runner, f'The {what} is not finite at', iteration)

    def after_train_epoch(self, runner: Runner) -> None:
        """Check the weights after the last step of the epoch."""
        model = get_ori_model(runner.model)
        _check_content(runner, dict(state_dict=model.state_dict()), runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights and the optimizer state before they are written."""
        self._check_records(runner)
        content = {key: checkpoint[key] for key in ('state_dict', 'optimizer') if key in checkpoint}
        _check_content(runner, content, checkpoint['meta']['iter'])


def _has_to_wait(flag: Tensor) -> bool:
    """Whether reading a value waits for the device."""
    return not flag.is_cpu


def _gradient_norm(wrapper: OptimWrapper) -> Tensor | None:
    """A norm of all gradients, after clipping the one that it used; None without gradients."""
    if wrapper.clip_grad_kwargs and wrapper.clip_func is torch.nn.utils.clip_grad_norm_:
        return torch.tensor(wrapper.message_hub.get_scalar(f'train/{wrapper.grad_name}').current())
    parameters = (parameter for group in wrapper.optimizer.param_groups for parameter in group['params'])
    gradients = [each.grad for each in parameters if each.grad is not None and each.grad.numel()]
    if not gradients:
        return None
    return torch.stack([norm.float() for norm in torch._foreach_norm(gradients, float('inf'))]).amax()


def _check_content(runner: Runner, content: dict, iteration: int) -> None:
    tensors = {name: each for name, each in _named_tensors(content) if each.is_floating_point()}
    # One flag per tensor, copied to the host together.
    flags = torch.stack([torch.isfinite(each).all() for each in tensors.values()]).tolist()
    broken = [name for name, finite in zip(tensors, flags) if not finite]
    if broken:
        what = f'{len(broken)} of {len(tensors)} tensors, {broken[0]} the first of them, hold NaN or infinite values'
        _stop(runner, f'{what} after', iteration)


def _named_tensors(value, name: str = '') -> Iterable[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists, with their paths."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _named_tensors(each, f'{name}.{key}' if name else str(key))


def _stop(runner: Runner, what: str, iteration: int) -> None:
    rate = optim_wrappers(runner)[0].get_lr()['lr'][0]
    raise FloatingPointError(
        f'{what} iteration {iteration} (epoch {runner.epoch + 1}, learning rate {rate:.3g}). The last checkpoint '
        f'before it: {find_latest_checkpoint(runner.work_dir) or "none yet"}. Lower the learning rate, clip the '
        'gradient (optim_wrapper.clip_grad), or train in float32 or bf16 instead of fp16.'
    )
