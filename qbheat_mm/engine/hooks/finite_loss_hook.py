"""Stop at the first loss that is not a number, and write no checkpoint that holds one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from mmpretrain.utils import get_ori_model
from torch import Tensor


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop the run when the loss becomes infinite or NaN, before a checkpoint with such weights is written.

    A finite loss can leave weights behind that are not: the loss is computed before the step, and its gradient may
    overflow where it did not. So weights and the optimizer's state are looked at too, where they are about to be
    kept: at the end of each epoch, on every process, and in each checkpoint, whenever it is written. (A model with
    buffers that are infinite on purpose has to do without this hook.)

    Args:
        interval: Iterations between checks of the loss. A check waits for the device, so on a GPU check every now
            and then; the hook also checks at the end of each epoch, before the checkpoint.

    Raises:
        FloatingPointError: With the iteration, the learning rate and the last checkpoint.
    """

    priority = 'NORMAL'  # before CheckpointHook, which is VERY_LOW

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Check the loss."""
        due = self.every_n_train_iters(runner, self.interval)
        if due or self.end_of_epoch(runner.train_dataloader, batch_idx):
            loss = outputs['loss']
            if not torch.isfinite(loss).all():
                _stop(runner, f'The loss is {loss.item()} at iteration {runner.iter + 1} (epoch {runner.epoch + 1}')

    def after_train_epoch(self, runner: Runner) -> None:
        """Check the weights after the epoch's last step."""
        model = get_ori_model(runner.model)
        _check_content(runner, dict(state_dict=model.state_dict()), runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights and the optimizer's state that would be written."""
        content = {key: checkpoint[key] for key in ('state_dict', 'optimizer') if key in checkpoint}
        _check_content(runner, content, checkpoint['meta']['iter'])


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
