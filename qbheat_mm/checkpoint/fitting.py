"""Whether weights fit a module: every key, shape, kind of number and value."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, is_model_wrapper, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..text import join_names
from .loading import CheckpointError, bare, read_state_dict, select_prefix


@dataclass
class Misfit:
    """The entries of a state dict that do not fit a module, each kind of misfit with its keys."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: dict[str, str] = field(default_factory=dict)  # key -> what is wrong
    numbers: dict[str, str] = field(default_factory=dict)  # not a matter of the model, but of the file

    def describe(self, keys: Iterable[str] | None = None) -> str:
        """The misfits, all or those of ``keys``, in one line; empty without any."""
        kinds = dict(missing=self.missing, unexpected=self.unexpected) | {
            'of another shape': self.shapes,
            'of other numbers': self.numbers,
        }
        parts = []
        for kind, found in kinds.items():
            chosen = [key for key in found if keys is None or key in keys]
            if isinstance(found, dict):
                chosen = [f'{key} {found[key]}' for key in chosen]
            if chosen:
                parts.append(f'{kind}: {join_names(chosen)}')
        return '; '.join(parts)


def load_fitting(module: nn.Module, state_dict: dict[str, Tensor]) -> Misfit:
    """Load the entries that fit, with the conversions of older names that modules make themselves.

    Returns:
        The others.
    """
    module = module.module if is_model_wrapper(module) else module
    own = module.state_dict()
    misfit = Misfit(numbers=dict(_other_numbers(own, state_dict)))
    left = _like(state_dict, {key: value for key, value in state_dict.items() if key not in misfit.numbers})
    try:
        result = module.load_state_dict(left, strict=False)
    except RuntimeError as error:  # torch has no other way to tell of shapes
        keys = re.findall(r'size mismatch for (\S+):', str(error))
        if not keys:
            raise
        for key in keys:
            found = tuple(state_dict[key].shape) if key in state_dict else 'converted'
            misfit.shapes[key] = f'{found} where {type(module).__name__} has {tuple(own[key].shape)}'
        left = _like(left, {key: value for key, value in left.items() if key not in misfit.shapes})
        result = module.load_state_dict(left, strict=False)
    # Files from before PyTorch 0.4.1 lack the counter, and no output depends on it.
    known = misfit.shapes.keys() | misfit.numbers.keys()
    misfit.missing = [k for k in result.missing_keys if k not in known and not k.endswith('num_batches_tracked')]
    misfit.unexpected = [key for key in result.unexpected_keys if key not in known]
    return misfit


def _like(original: dict, state_dict: dict) -> dict:
    """``state_dict`` with the versions of the modules that ``original`` was saved from."""
    copy = type(original)() if hasattr(original, '_metadata') else {}
    copy.update(state_dict)
    if hasattr(original, '_metadata'):
        copy._metadata = original._metadata
    return copy


def _other_numbers(own: dict[str, Tensor], state_dict: dict[str, Tensor]) -> Iterable[tuple[str, str]]:
    for key, value in state_dict.items():
        if key not in own or not isinstance(value, Tensor):
            continue
        kind = str(value.dtype).removeprefix('torch.')
        if own[key].is_floating_point() != value.is_floating_point():
            yield key, f'{kind} where {str(own[key].dtype).removeprefix("torch.")} belongs'
        elif value.is_floating_point() and not torch.isfinite(value).all() and torch.isfinite(own[key]).all():
            yield key, '(NaN)' if torch.isnan(value).any() else '(infinite)'


def load_weights(
    module: nn.Module, state_dict: dict[str, Tensor], source: str, partly: bool = False, remedy: str = ''
) -> None:
    """Load weights into a module.

    Args:
        module: Takes the weights.
        state_dict: The weights.
        source: Where they come from, for messages.
        partly: Load those that fit, and name the others in the log.
        remedy: What the message adds where only a part fits.

    Raises:
        CheckpointError: If a key is missing, is unexpected, has another shape or kind of number, or a value is not
            finite; names them. With ``partly``, if nothing fits, or for numbers.
    """
    misfit, name = load_fitting(module, state_dict), _name(module)
    problem = misfit.describe()
    if misfit.numbers or (problem and not partly):
        raise CheckpointError(f'"{source}" does not fit {name}. {problem}.{"" if misfit.numbers else remedy}')
    count = len(state_dict) - len(misfit.unexpected) - len(misfit.shapes)
    if partly and not count:
        raise CheckpointError(f'Nothing in "{source}" fits {name}. {problem}.')
    if problem:
        print_log(
            f'{name}: loaded {count} of {len(state_dict)} entries of {source}. Not loaded are those {problem}',
            logger='current',
            level=logging.WARNING,
        )
    else:
        print_log(f'{name}: loaded all {len(state_dict)} entries of {source}', logger='current')


def load_pretrained(module: nn.Module, checkpoint: str | None, prefix: str | None = None) -> None:
    """Load a checkpoint into ``module``; every key must fit.

    Args:
        module: Takes the weights.
        checkpoint: The file or address.
        prefix: Where the module's weights lie in the file, ``'backbone.'`` as a rule.

    Raises:
        CheckpointError: If a key is missing, is unexpected, or has another shape; names them.
    """
    load_weights(module, _read(module, checkpoint, prefix), bare(checkpoint))


def _read(module: nn.Module, checkpoint: str | None, prefix: str | None) -> dict[str, Tensor]:
    if not checkpoint:
        raise CheckpointError(
            f'No checkpoint is named for {_name(module)}. Set init_cfg.checkpoint of it, for example '
            '`--cfg-options model.backbone.init_cfg.checkpoint=FILE`.'
        )
    return select_prefix(read_state_dict(checkpoint), prefix or '', checkpoint)


@WEIGHT_INITIALIZERS.register_module(name='Pretrained', force=True)
class StrictPretrainedInit(PretrainedInit):
    """mmengine's ``Pretrained``, which stops if a frozen part of the module is not loaded.

    mmengine's own one warns and goes on, and a frozen backbone stays random. Parts that are trained may be missing in
    the file, which the log names, but not all of them.

    Args:
        checkpoint: The file or address.
        prefix: Where the module's weights lie in the file.
        map_location: As in mmengine.

    Raises:
        CheckpointError: If a frozen key is missing or has another shape or kind of number, if nothing fits, or if a
            module that is all frozen lacks keys that the file has for its parts.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load."""
        state_dict, source = _read(module, self.checkpoint, self.prefix), bare(self.checkpoint)
        module.train(module.training)  # in which some backbones freeze their stages
        frozen, misfit = _frozen(module), load_fitting(module, state_dict)
        problem = misfit.describe({*frozen, *misfit.numbers, *_unexpected_parts(module, frozen, misfit)})
        if len(misfit.unexpected) + len(misfit.shapes) == len(state_dict):
            problem = misfit.describe() + _prefix_remedy(module, state_dict, self.prefix)
        if problem:
            raise CheckpointError(f'"{source}" does not fit {_name(module)}. {problem}.')
        if rest := misfit.describe():
            print_log(f'{_name(module)}: {source} does not fit all of it. {rest}', 'current', logging.WARNING)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def _frozen(module: nn.Module) -> set[str]:
    """The entries of the state dict that training does not change: frozen parameters, and buffers beside them."""
    frozen = set()
    for name, part in module.named_modules(remove_duplicate=False):
        own = dict(part.named_parameters(recurse=False))
        keys = {key for key, value in own.items() if not value.requires_grad}
        if own and len(keys) == len(own):
            keys |= {key for key, _ in part.named_buffers(recurse=False)}
        frozen |= {f'{name}.{key}' if name else key for key in keys}
    return frozen


def blank_frozen(model: nn.Module) -> dict[str, nn.Module]:
    """Set the frozen weights of modules that are about to load a ``Pretrained`` checkpoint to NaN.

    Some backbones of mmdet load in their own way, and leave out what does not fit without a word.

    Returns:
        These modules, for :func:`check_filled`.
    """
    found = {}
    for name, module in model.named_modules():
        cfg = getattr(module, 'init_cfg', None)
        if isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit) and not module.is_init:
            cfg['type'] = 'Pretrained'  # the strict one
            module.train(module.training)  # in which some backbones freeze their stages
            found[name] = module
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.data.fill_(torch.nan)
    return found


def check_filled(modules: dict[str, nn.Module]) -> None:
    """Check that nothing of what :func:`blank_frozen` blanked is left.

    Raises:
        CheckpointError: With the names.
    """
    for name, module in modules.items():
        left = [
            f'{name}.{key}'
            for key, value in module.named_parameters()
            if not value.requires_grad and torch.isnan(value).any()
        ]
        if left:
            source = bare(module.init_cfg['checkpoint'])
            raise CheckpointError(
                f'"{source}" does not fit {_name(module)}. Frozen, but not loaded: {join_names(left)}.'
            )


def _unexpected_parts(module: nn.Module, frozen: set[str], misfit: Misfit) -> list[str]:
    """What the file has for parts of a module that is all frozen; a classifier's head in the file is none."""
    if not all(name in frozen for name, _ in module.named_parameters()):
        return []
    parts = {name for name, _ in module.named_children()}
    return [key for key in misfit.unexpected if key.split('.')[0] in parts]


def _prefix_remedy(module: nn.Module, state_dict: dict, prefix: str | None) -> str:
    """How to name the prefix under which the module's entries lie, if there is one."""
    own = list(module.state_dict())
    for key in sorted(state_dict, key=len):
        if own and key.endswith('.' + own[0]):
            found = key[: -len(own[0])]
            if sum(found + name in state_dict for name in own) > len(own) // 2:
                return f'. They lie under the prefix "{(prefix or "") + found}": set init_cfg.prefix to it'
    return ''


def _name(module: nn.Module) -> str:
    return type(module.module if is_model_wrapper(module) else module).__name__
