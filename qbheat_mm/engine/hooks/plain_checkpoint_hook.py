"""Checkpoints of tensors and plain values only."""

from __future__ import annotations

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Write checkpoints that ``torch.load(weights_only=True)`` reads, and resume from them.

    mmengine stores its log curves as pickled ``HistoryBuffer`` objects, for which torch >= 2.6 would have to allow
    ``getattr`` (open-mmlab/mmengine#1655), a door for any code. They become lists in the file, and buffers again
    before mmengine reads them; NumPy values become Python's.
    """

    # After every hook that adds to the checkpoint.
    priority = 'LOWEST'

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Objects to plain values; the weights and the optimizer's state are tensors already."""
        for key in checkpoint.keys() - {'state_dict', 'optimizer'}:
            checkpoint[key] = _to_plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Lists to buffers; checkpoints of other runs pass as they are."""
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for key, value in scalars.items():
            if isinstance(value, dict):
                scalars[key] = HistoryBuffer(**value)


def _to_plain(value):
    if isinstance(value, dict):
        return {_to_plain(key): _to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_plain(each) for each in value)
    if isinstance(value, HistoryBuffer):
        values, counts = value.data
        return dict(log_history=values.tolist(), count_history=counts.tolist(), max_length=value.max_length)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value
