"""Schedules for another number of epochs."""

from __future__ import annotations

from mmengine.config import Config


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
    for i, scheduler in enumerate(cfg.param_scheduler):
        if scheduler.get('end') == cfg.train_cfg.max_epochs:
            if scheduler.get('begin', 0) >= epochs:
                raise ValueError(
                    f'"epochs: {epochs}" does not exceed the warm-up of {scheduler.begin}: use more epochs.'
                )
            options[f'param_scheduler.{i}.end'] = epochs
    return options
