"""Stop at the first loss or gradient that is not a number, and write no checkpoint that holds one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from mmpretrain.utils import get_ori_model
from torch import Tensor
from torch.optim import Optimizer


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stop the run when the loss or a gradient becomes infinite or NaN, before such weights reach a checkpoint.

    On a CPU it stops at once, before the optimizer takes the gradient. Asking a GPU would wait for it, so there the
    first such iteration is noted on the device, and looked at every now and then and before each checkpoint.

    Finite gradients can leave weights or an optimizer's state behind that are not. So these are looked at too, where
    they are about to be kept: at the end of each epoch, on every process, and in each checkpoint, whenever it is
    written. (A model with buffers that are infinite on purpose has to do without this hook.)

    Under float16 with a gradient scaler, steps that the scaler skips are its way to find a scale: they are allowed,
    whatever the loss was, unless there are too many in a row.

    Args:
        interval: Iterations between looks at what was noted on a GPU.
        max_skips: So many skipped steps in a row end the run.

    Raises:
        FloatingPointError: With the iteration, the learning rate and the last checkpoint.
    """

    priority = 'NORMAL'  # before CheckpointHook, which is VERY_LOW

    def __init__(self, interval: int = 50, max_skips: int = 20) -> None:
        self.interval = interval
        self.max_skips = max_skips
        self._first: dict[str, Tensor] = {}  # what -> the first iteration at which it was not finite, or 0
        self._stepped, self._skips = False, 0

    def before_train(self, runner: Runner) -> None:
        """Look at gradients right before each step of an optimizer, which a scaler calls for steps it does not skip."""
        for wrapper in _wrappers(runner.optim_wrapper):
            wrapper.optimizer.register_step_pre_hook(partial(self._before_step, runner, wrapper))

    def _before_step(self, runner: Runner, wrapper: OptimWrapper, optimizer: Optimizer, *_) -> None:
        found_inf = getattr(optimizer, 'found_inf', None)
        if found_inf is not None and found_inf.item():
            return  # a fused optimizer is called for a step that is skipped, too
        self._stepped = True
        norm = _gradient_norm(wrapper)
        if norm is not None:
            self._note(runner, 'loss or its gradient', torch.isfinite(norm))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Count skipped steps; check the loss of the others."""
        stepped, self._stepped = self._stepped, False
        wrapper = runner.optim_wrapper
        if _has_scaler(wrapper) and not stepped:
            self._skips += wrapper.should_update()
            if self._skips >= self.max_skips:
                _stop(
                    runner,
                    f'The gradient scaler skipped {self._skips} steps in a row, because the gradient overflows float16 '
                    f'at every scale, up to iteration {runner.iter + 1} (epoch {runner.epoch + 1}',
                )
        else:
            self._skips = 0
            self._note(runner, 'loss', torch.isfinite(outputs['loss'].detach()).all())
        if self.every_n_train_iters(runner, self.interval) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._check_notes(runner)

    def _note(self, runner: Runner, what: str, finite: Tensor) -> None:
        """Keep, on the device, the iteration at which ``what`` first was not finite."""
        now = torch.where(finite, 0, runner.iter + 1)
        first = self._first.get(what, torch.zeros_like(now))
        self._first[what] = torch.where(first > 0, first, now)
        if not _has_to_wait(finite):
            self._check_notes(runner)

    def _check_notes(self, runner: Runner) -> None:
        for what, first in self._first.items():
            if iteration := int(first):
                _stop(runner, f'The {what} is not finite at iteration {iteration} (epoch {runner.epoch + 1}')

    def after_train_epoch(self, runner: Runner) -> None:
        """Check the weights after the epoch's last step."""
        model = get_ori_model(runner.model)
        _check_content(runner, dict(state_dict=model.state_dict()), runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights and the optimizer's state that would be written."""
        self._check_notes(runner)
        content = {key: checkpoint[key] for key in ('state_dict', 'optimizer') if key in checkpoint}
        _check_content(runner, content, checkpoint['meta']['iter'])


def _has_to_wait(flag: Tensor) -> bool:
    """Whether looking at a value would wait for the device."""
    return not flag.is_cpu


def _wrappers(wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _gradient_norm(wrapper: OptimWrapper) -> Tensor | None:
    """A norm of all gradients, the one that they have just been clipped by if they were; None without gradients."""
    if wrapper.clip_grad_kwargs and wrapper.clip_func is torch.nn.utils.clip_grad_norm_:
        return torch.tensor(wrapper.message_hub.get_scalar(f'train/{wrapper.grad_name}').current())
    parameters = (parameter for group in wrapper.optimizer.param_groups for parameter in group['params'])
    gradients = [each.grad for each in parameters if each.grad is not None and each.grad.numel()]
    if not gradients:
        return None
    return torch.stack([norm.float() for norm in torch._foreach_norm(gradients, float('inf'))]).amax()


def _has_scaler(wrapper: OptimWrapper | OptimWrapperDict) -> bool:
    """Whether gradients are scaled, so that steps may be skipped: float16."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()


def _check_content(runner: Runner, content: dict, iteration: int) -> None:
    tensors = {name: each for name, each in _named_tensors(content) if each.is_floating_point()}
    # One flag a tensor; all of them come to the host together.
    flags = torch.stack([torch.isfinite(each).all() for each in tensors.values()]).tolist()
    broken = [name for name, finite in zip(tensors, flags) if not finite]
    if broken:
        _stop(
            runner,
            f'{len(broken)} of {len(tensors)} tensors, {broken[0]} the first of them, hold NaN or infinite values '
            f'after iteration {iteration} (epoch {runner.epoch + 1}',
        )


def _named_tensors(value, name: str = '') -> Iterable[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists, by their place."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _named_tensors(each, f'{name}.{key}' if name else str(key))


def _stop(runner: Runner, what: str) -> None:
    rates = ', '.join(f'{rate:.3g}' for rate in runner.optim_wrapper.get_lr()['lr'][:1])
    last = find_latest_checkpoint(runner.work_dir)
    raise FloatingPointError(
        f'{what}, learning rate {rates}). The last checkpoint from before: {last or "none yet"}. Lower the learning '
        'rate, clip the gradient (optim_wrapper.clip_grad), or train in float32 or bf16 instead of fp16.'
    )
