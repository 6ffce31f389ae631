"""A backbone as a plain PyTorch module, for use without OpenMMLab."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.apis import ModelHub
from torch import Tensor, nn

from ..checkpoint import CheckpointError, bare, load_weights, read_state_dict, select_prefix
from .model_index import local_address

CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


class FeatureBackbone(nn.Module):
    """A backbone that takes RGB images and returns a list of features, like ``features_only`` models of timm.

    Attributes:
        channels: Channels of each output.
        strides: Input pixels per position of each output; None for those that are no feature maps.
        mean: Means of red, green and blue, for images in [0, 1].
        std: Their standard deviations.

    Args:
        backbone: Returns one tensor, or several.
        mean: See above.
        std: See above.
        bgr: Whether ``backbone`` was trained on blue, green, red.
    """

    SIDE = 64  # of the image that the outputs are measured with

    def __init__(self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], bgr: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean, self.std, self.bgr = mean, std, bgr
        self.eval()
        with torch.no_grad():
            outs = self(torch.zeros(1, 3, self.SIDE, self.SIDE))
        self.channels = [out.shape[1 if out.ndim == 4 else -1] for out in outs]
        self.strides = [self.SIDE // out.shape[2] if out.ndim == 4 else None for out in outs]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            images: (N, 3, H, W), RGB, normalized with ``mean`` and ``std``.

        Returns:
            The features of each chosen stage, from the finest to the coarsest: (N, C_i, H / s_i, W / s_i). With
            ``out_tokens``, the last item is Mobile-Former's tokens (N, M, d).
        """
        outs = self.backbone(images.flip(1) if self.bgr else images)
        return [outs] if isinstance(outs, Tensor) else list(outs)


def load_backbone(
    config_or_weights: str | Path | Config, checkpoint: str | Path | None = None, **fields
) -> FeatureBackbone:
    """Load a trained backbone as a plain module in eval mode.

    Every weight must fit, and no code in the checkpoint is executed.

    >>> backbone = load_backbone('qbheat-hog_mobile-former-285m_24e_imagenette', out_indices=(1, 2))
    >>> [features.shape for features in backbone(images)]  # (N, 3, 128, 128), RGB, normalized
    [(N, 32, 16, 16), (N, 160, 8, 8)]

    Args:
        config_or_weights: A config or its file, a name in ``mmpretrain.list_models()``, or a file of ``weights/``.
        checkpoint: The weights of the backbone, or of a model with it; defaults to those that the name stands for, or
            ``model.backbone.init_cfg.checkpoint`` of the config.
        **fields: Replace fields of ``model.backbone`` in the config, for example ``out_indices`` and ``out_tokens``.

    Raises:
        CheckpointError: If no weights are named, they cannot be read, or they do not fit.
        FileNotFoundError: If there is no such config.
        ValueError: If there is no such name, or the config has no ``model.backbone``.
    """
    cfg, weights = find_config(config_or_weights)
    model = cfg.get('model') or {}
    if not isinstance(model, dict) or not model.get('backbone'):
        raise ValueError(f'"{_name(config_or_weights)}" has no model.backbone; name a config of a model with one.')
    settings = dict(model['backbone'])
    init_cfg = settings.pop('init_cfg', None)
    named = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    for freezing in ('frozen_stages', 'norm_eval'):  # matters of a training
        settings.pop(freezing, None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        backbone = MODELS.build(settings | fields)
    load_backbone_weights(backbone, checkpoint or weights or named, _name(config_or_weights))
    return FeatureBackbone(backbone, *normalization(cfg))


def load_backbone_weights(backbone: nn.Module, checkpoint: str | Path | None, source: str) -> None:
    """Load a file of the backbone, or of a model with it; every key must fit.

    Raises:
        CheckpointError: If there is no file, or it does not fit.
    """
    if not checkpoint:
        raise CheckpointError(f'"{source}" names no weights: give the checkpoint as second argument.')
    state_dict = read_state_dict(checkpoint)
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in state_dict) else ''
    load_weights(backbone, select_prefix(state_dict, prefix, checkpoint), bare(checkpoint))


def find_config(config_or_weights: str | Path | Config) -> tuple[Config, str | None]:
    """The config that a config, its file, a name or a file of ``weights/`` stands for, and the weights it names.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If there is no such name.
    """
    if isinstance(config_or_weights, Config):
        return config_or_weights, None
    text = str(config_or_weights)
    if text.endswith(CONFIG_SUFFIXES):
        if not Path(text).is_file():
            raise FileNotFoundError(f'There is no config at "{text}".')
        return Config.fromfile(text), None
    is_file = Path(text).is_file()
    name = re.sub('-[0-9a-f]{8}$', '', Path(text).stem) if is_file else text
    try:
        model = ModelHub.get(name)
    except ValueError:
        if is_file:
            problem = f'"{text}" is not a file of weights/: give its config first, and the file as second argument.'
        else:
            problem = f'"{text}" is neither a file nor a name in mmpretrain.list_models().'
        raise ValueError(problem) from None
    return model.config, text if is_file else local_address(model.weights)


def normalization(cfg: Config) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Means and deviations of a config's model, for RGB images in [0, 1], and whether the model takes BGR."""
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    # OpenMMLab's transforms load BGR.
    bgr = not (preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb'))
    step = -1 if bgr else 1
    mean, std = (
        tuple(value / 255 for value in (preprocessor.get(name) or default)[::step])
        for name, default in (('mean', (0, 0, 0)), ('std', (1, 1, 1)))
    )
    return mean, std, bgr


def _name(config: str | Path | Config) -> str:
    return str((config.filename or 'The config') if isinstance(config, Config) else config)
