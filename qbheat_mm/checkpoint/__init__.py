from .atomic import atomic_dir, atomic_write
from .loading import (
    CheckpointError,
    bare,
    guard,
    guard_init_cfg,
    load_pretrained,
    pick_state_dict,
    read_checkpoint,
    read_state_dict,
    select_prefix,
)
from .publishing import publish

__all__ = [
    'CheckpointError',
    'atomic_dir',
    'atomic_write',
    'bare',
    'guard',
    'guard_init_cfg',
    'load_pretrained',
    'pick_state_dict',
    'publish',
    'read_checkpoint',
    'read_state_dict',
    'select_prefix',
]
