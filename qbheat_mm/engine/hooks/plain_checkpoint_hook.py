"""Checkpoints of tensors and plain values only."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Write checkpoints that ``torch.load(weights_only=True)`` reads, and resume from them.

    mmengine stores its log curves as pickled ``HistoryBuffer`` objects, for which torch >= 2.6 would have to allow
    ``getattr`` (open-mmlab/mmengine#1655), a door for any code. They become lists in the file and buffers again
    before mmengine reads them.
    """

    # After every hook that adds to the checkpoint, and before every one that reads it.
    priority = 'LOWEST'

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Buffers to lists."""
        hub = checkpoint['message_hub']
        hub['log_scalars'] = {key: _to_plain(value) for key, value in hub['log_scalars'].items()}
        hub['runtime_info'] = dict(hub['runtime_info'])
        hub['resumed_keys'] = dict(hub['resumed_keys'])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Lists to buffers; other checkpoints pass as they are."""
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for key, value in scalars.items():
            if isinstance(value, dict):
                scalars[key] = HistoryBuffer(**value)


def _to_plain(buffer: HistoryBuffer) -> dict:
    values, counts = buffer.data
    return dict(log_history=values.tolist(), count_history=counts.tolist(), max_length=buffer.max_length)
