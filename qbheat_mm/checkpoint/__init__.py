from .atomic import atomic_dir, atomic_write, refuse_existing
from .loading import (
    TRUST_HELP,
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
    'TRUST_HELP',
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
    'refuse_existing',
    'select_prefix',
]
