from .atomic import atomic_dir, atomic_write, refuse_existing
from .fitting import load_pretrained, load_weights
from .loading import (
    CheckpointError,
    bare,
    guard,
    pick_state_dict,
    read_checkpoint,
    read_state_dict,
    select_prefix,
    trust_init_cfg,
)
from .publishing import publish

__all__ = [
    'CheckpointError',
    'atomic_dir',
    'atomic_write',
    'bare',
    'guard',
    'load_pretrained',
    'load_weights',
    'pick_state_dict',
    'publish',
    'read_checkpoint',
    'read_state_dict',
    'refuse_existing',
    'select_prefix',
    'trust_init_cfg',
]
