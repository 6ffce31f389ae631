"""Options of the command line that would have no effect: misspelt fields, and variables of config files."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

# What mmengine's Runner reads from the config beside its own arguments.
READ = {'runner_type', 'find_unused_parameters', 'model_wrapper_cfg', 'activation_checkpointing'}
READ |= {'efficient_conv_bn_eval', 'tta_model', 'tta_pipeline', 'custom_imports', 'optimizer', 'resume_from'}
FIELDS = READ.union(*(inspect.signature(kind.__init__).parameters for kind in (Runner, FlexibleRunner))) - {
    'self',
    'cfg',
}
# Where a whole number stands for nothing else; in models and pipelines it may be short for a pair.
SCALARS = ('train_cfg.', 'train_dataloader.', 'val_dataloader.', 'test_dataloader.', 'default_hooks.', 'auto_scale_lr.')
SIMILAR = 0.85  # of difflib; optimzer and optimizer have 0.94, save_best and save_last 0.78


def check_options(cfg: Config, options: dict) -> list[str]:
    """Check the options of the command line before they are merged into a config.

    Args:
        cfg: The config as its file has it.
        options: Dotted keys and values.

    Returns:
        Warnings of keys that are there and probably have no effect.

    Raises:
        ValueError: With the nearest field, for a key that no field has, where that is near or nothing reads the key;
            for a number in the config, if the value is a list or text that starts as a number does.
    """
    warnings = []
    for key, value in options.items():
        _check_number(cfg, key, value)
        missing, siblings = _first_missing(cfg, key)
        root = key.split('.')[0]
        if root not in FIELDS and root in cfg:
            others = [path for path in _paths(cfg) if '.' in path and path.rpartition('.')[2] == root]
            remedy = f' The field of this name is {others[0]}.' if others else ''
            warnings.append(
                f'"{root}" is a variable of the config file, which has been read: {key} changes no field.{remedy}'
            )
        elif root not in FIELDS or (missing and difflib.get_close_matches(missing, siblings, cutoff=SIMILAR)):
            near = difflib.get_close_matches(key, _paths(cfg), n=1, cutoff=0)
            raise ValueError(f'--cfg-options {key}: the config has no such field. The nearest is {near[0]}.')
    return warnings


def _check_number(cfg: Config, key: str, value) -> None:
    """Refuse ``lr=1,5``, which is a list, and ``lr=1e-3x``, which is text, where the config has a number."""
    node = cfg
    try:
        for part in key.split('.'):
            node = node[int(part) if isinstance(node, (list, tuple)) else part]
    except (KeyError, IndexError, ValueError, TypeError):  # a new field
        return
    scalar = type(node) is int and key.startswith(SCALARS) and '.dataset.' not in key
    if not isinstance(node, float) and not scalar:
        return
    if isinstance(value, (list, tuple)) or (
        isinstance(value, str) and (scalar or value.lstrip('+-.')[:1].isdigit())  # loss_scale=dynamic
    ):
        raise ValueError(
            f'--cfg-options {key}: {value!r} is not a number like {node!r} in the config; write decimals with a point.'
        )


def _first_missing(cfg: Config, key: str) -> tuple[str, list[str]]:
    """The first part of a dotted key that is not there, and what is beside it; an empty part if all is there."""
    node = cfg
    for part in key.split('.'):
        if isinstance(node, (list, tuple)) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, (dict, Config)):
            if part not in node:
                return part, [str(name) for name in node]
            node = node[part]
        else:
            break
    return '', []


def _paths(node, prefix: str = '') -> Iterator[str]:
    """The dotted keys of a config."""
    children = node.items() if isinstance(node, (dict, Config)) else enumerate(node)
    for name, child in children:
        yield f'{prefix}{name}'
        if isinstance(child, (dict, list, tuple)):
            yield from _paths(child, f'{prefix}{name}.')
