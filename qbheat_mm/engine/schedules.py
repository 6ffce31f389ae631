"""Schedules that end where training ends, with the rate that config and batch give, also after a resume."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from copy import deepcopy

from mmengine import dist
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim.scheduler import param_scheduler as kinds
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.runner import IterBasedTrainLoop, Runner

from .runners import batch_size, optim_wrappers

PROGRESS = {'last_step', '_global_step', '_last_value', 'base_values', 'verbose', 'optimizer'}
EXECUTION = {'params', 'fused', 'foreach', 'capturable', 'differentiable'}  # how an optimizer computes, not what


def epoch_options(cfg: Config, epochs: int) -> dict:
    """Options that change the number of epochs of a config, and rescale its schedule to end with them.

    Args:
        cfg: Of a training; not changed.
        epochs: The new number of epochs.

    Returns:
        Fields for ``--cfg-options`` and ``Config.merge_from_dict``.

    Raises:
        ValueError: If the warm-up takes all epochs.
    """
    options = {'train_cfg.max_epochs': epochs}
    schedulers = cfg.get('param_scheduler') or []
    for i, scheduler in enumerate(schedulers if isinstance(schedulers, list) else []):
        begin, end = scheduler.get('begin', 0), scheduler.get('end')
        if scheduler.get('by_epoch', True) and end in (None, cfg.train_cfg.max_epochs):
            if begin >= epochs:
                raise ValueError(
                    f'{epochs} epochs do not exceed the warm-up of {begin}: use more epochs, or a shorter warm-up '
                    f'(param_scheduler.{i - 1}.end and param_scheduler.{i}.begin).'
                )
            if end is not None:
                options[f'param_scheduler.{i}.end'] = epochs
                if scheduler.get('T_max') == end - begin:
                    options[f'param_scheduler.{i}.T_max'] = epochs - begin
    return options


def effective_batch(runner: Runner) -> tuple[int, int, int]:
    """Number of processes, of images in each one's batch, and of batches that an update accumulates."""
    return dist.get_world_size(), batch_size(runner), optim_wrappers(runner)[0]._accumulative_counts


def peak_rates(runner: Runner) -> list[float]:
    """The different peak learning rates of the optimizer's groups, in their order."""
    groups = [group for wrapper in optim_wrappers(runner) for group in wrapper.param_groups]
    return list(dict.fromkeys(float(group.get('initial_lr', group['lr'])) for group in groups))


def optimizers(runner: Runner) -> Iterator[tuple[OptimWrapper, list[_ParamScheduler]]]:
    """The optimizers of a run, each with its schedulers."""
    schedulers = runner.param_schedulers or []
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        for name, wrapper in runner.optim_wrapper.items():
            yield wrapper, schedulers[name] if isinstance(schedulers, dict) else []
    else:
        yield runner.optim_wrapper, schedulers


def unmatched_ends(runner: Runner) -> list[str]:
    """What keeps a schedule from ending where training ends, one sentence for each scheduler."""
    found = []
    for _, schedulers in optimizers(runner):
        for name in dict.fromkeys(scheduler.param_name for scheduler in schedulers):
            found += _unmatched_ends([each for each in schedulers if each.param_name == name], runner)
    return list(dict.fromkeys(found))


def _unmatched_ends(schedulers: list[_ParamScheduler], runner: Runner) -> Iterator[str]:
    length = 1 if isinstance(runner.train_loop, IterBasedTrainLoop) else len(runner.train_dataloader)
    shares = []  # of the training, at which each scheduler ends
    for scheduler in schedulers:
        total, unit = (runner.max_epochs, 1) if scheduler.by_epoch else (runner.max_iters, length)
        place = 'iteration' if unit == 1 and not scheduler.by_epoch else 'epoch'
        name, end = type(scheduler).__name__, scheduler.end / unit
        shares.append(1.0 if scheduler.end >= INF else scheduler.end / total)
        late = [step / unit for step in getattr(scheduler, 'milestones', ()) if total <= step < scheduler.end]
        if shares[-1] > 1:
            yield (
                f'{name} is made to end at {place} {end:g}, but training ends at {place} {total / unit:g}: its '
                f'{scheduler.param_name} stops on the way'
            )
        elif late:
            yield f'the milestone {late[0]:g} of {name} lies after the end of training'
    if shares and max(shares) < 1:
        last = schedulers[shares.index(max(shares))]
        if not _stays_at_peak(last):
            share = f'{100 * max(shares):.0f} %'
            yield f'{type(last).__name__} ends after {share} of the training: its {last.param_name} stays there'


def _stays_at_peak(scheduler: _ParamScheduler) -> bool:
    """Whether it is a warm-up, or steps, after which the value is meant to stay."""
    if isinstance(scheduler, kinds.LinearParamScheduler):
        return scheduler.end_factor == 1
    return isinstance(scheduler, (kinds.ConstantParamScheduler, kinds.MultiStepParamScheduler))


class Plan:
    """What config and batch give: the settings of the optimizers and schedulers before anything is resumed.

    Args:
        runner: With built optimizers and schedulers.
    """

    def __init__(self, runner: Runner) -> None:
        self._groups = [[_copy_settings(each, group) for group in each.param_groups] for each, _ in optimizers(runner)]
        self._schedulers = [[_copy_state(each) for each in schedulers] for _, schedulers in optimizers(runner)]

    def follow(self, runner: Runner) -> list[str]:
        """Make a resumed run train with the settings of the plan, at the position that its epochs give.

        Settings of the optimizer take the plan's values. If they, the schedulers or the number of iterations differ
        from the checkpoint's, the schedulers are recomputed up to the position. The runner's count of iterations
        becomes that of the epochs done, of their present length.

        Returns:
            The changes, for the log.
        """
        changes = self._changed_settings(runner)
        epochs, iterations = position(runner)
        if runner.iter != iterations:
            changes.append(f'iteration {runner.iter} -> {iterations}')
            runner.train_loop._iter = iterations
            runner.optim_wrapper.initialize_count_status(runner.model, iterations, runner.max_iters)
        changes += self._changed_schedules(runner, epochs, iterations)
        if changes:
            if any(getattr(each, 'need_val_args', False) for _, part in optimizers(runner) for each in part):
                self._restore(runner, scheduled=False)
                changes.append('schedules that follow a metric continue as the checkpoint has them')
            else:
                self._restore(runner)
                _replay([each for _, part in optimizers(runner) for each in part], epochs, iterations, runner)
        return changes

    def _changed_settings(self, runner: Runner) -> list[str]:
        changes = []
        for (wrapper, schedulers), planned in zip(optimizers(runner), self._groups):
            scheduled = {each.param_name for each in schedulers}
            for group, plan in zip(wrapper.param_groups, planned):
                for key in plan.keys() - scheduled:
                    if _plain(group.get(key)) != _plain(plan[key]):
                        name = {'initial_lr': 'peak lr'}.get(key, key)
                        changes.append(f'{name} {_show(group.get(key))} -> {_show(plan[key])}')
        return list(dict.fromkeys(sorted(changes)))

    def _changed_schedules(self, runner: Runner, epochs: int, iterations: int) -> list[str]:
        changes = []
        for (_, schedulers), planned in zip(optimizers(runner), self._schedulers):
            for scheduler, plan in zip(schedulers, planned):
                name = type(scheduler).__name__
                for key in sorted((plan.keys() | vars(scheduler).keys()) - PROGRESS):
                    old, new = vars(scheduler).get(key), plan.get(key)
                    if _plain(old) != _plain(new):
                        changes.append(f'{name}.{key} {_show(old)} -> {_show(new)}')
                done = epochs if scheduler.by_epoch else iterations
                if not changes and scheduler._global_step != done and not getattr(scheduler, 'need_val_args', False):
                    changes.append(f'{name} at step {scheduler._global_step} -> {done}')
        return list(dict.fromkeys(changes))

    def _restore(self, runner: Runner, scheduled: bool = True) -> None:
        for (wrapper, schedulers), groups, states in zip(optimizers(runner), self._groups, self._schedulers):
            kept = set() if scheduled else {each.param_name for each in schedulers}
            for group, plan in zip(wrapper.param_groups, groups):
                group.update({key: value for key, value in plan.items() if key not in kept})
            for scheduler, state in zip(schedulers, states) if scheduled else ():
                optimizer = scheduler.optimizer
                vars(scheduler).clear()
                vars(scheduler).update(deepcopy(state), optimizer=optimizer)


def position(runner: Runner) -> tuple[int, int]:
    """The number of epochs that are done, and of iterations, of the present length of an epoch.

    An epoch that was interrupted counts as far as it is not repeated, which DeterministicSeedHook decides.
    """
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        return 0, runner.iter
    skipped = getattr(runner.train_dataloader.batch_sampler, 'start', 0)
    return runner.epoch, runner.epoch * len(runner.train_dataloader) + skipped


def _replay(schedulers: Iterable[_ParamScheduler], epochs: int, iterations: int, runner: Runner) -> None:
    """Step new schedulers as ParamSchedulerHook has by now."""
    length = max(iterations, 1) if isinstance(runner.train_loop, IterBasedTrainLoop) else len(runner.train_dataloader)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Detected call of `scheduler.step')
        for iteration in range(1, iterations + 1):
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
            if iteration % length == 0 and iteration // length <= epochs:
                for scheduler in schedulers:
                    if scheduler.by_epoch:
                        scheduler.step()


def _copy_settings(wrapper: OptimWrapper, group: dict) -> dict:
    """The settings in a group of parameters: arguments of the optimizer, and what schedulers added to it.

    What else an optimizer keeps there is its state.
    """
    optimizer = wrapper.optimizer
    arguments = inspect.signature(type(optimizer).__init__).parameters
    keys = {key for key in group if key in arguments or key not in optimizer.defaults}
    return deepcopy({key: group[key] for key in keys - EXECUTION})


def _copy_state(scheduler: _ParamScheduler) -> dict:
    return deepcopy({key: value for key, value in vars(scheduler).items() if key != 'optimizer'})


def _plain(value):
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _show(value) -> str:
    if isinstance(value, dict):  # milestones
        value = sorted(value)
    return f'{value:g}' if isinstance(value, float) else str(value)
