"""Other numbers of epochs for a config's schedule."""

from __future__ import annotations

from mmengine.config import Config


def epoch_options(cfg: Config, epochs: int) -> dict:
    """Options that make a config train for so many epochs, with the schedule drawn out or in to end with them.

    Args:
        cfg: Of a training; left as it is.
        epochs: How many.

    Returns:
        Fields as ``--cfg-options`` and ``Config.merge_from_dict`` take them.

    Raises:
        ValueError: If warm-up alone takes as many.
    """
    options = {'train_cfg.max_epochs': epochs}
    for i, scheduler in enumerate(cfg.param_scheduler):
        if scheduler.get('end') == cfg.train_cfg.max_epochs:
            if scheduler.get('begin', 0) >= epochs:
                raise ValueError(f'"epochs: {epochs}" is over with the warm-up of {scheduler.begin}: name more.')
            options[f'param_scheduler.{i}.end'] = epochs
    return options
