"""Features of frozen backbones: build the backbone, calibrate it, extract its features, sum their moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...checkpoint import load_pretrained, read_state_dict


def build_encoder(config: Config, checkpoint: str | Path | None = None, seed: int = 0) -> BaseModel:
    """Build a config's backbone and data preprocessor as an ``ImageClassifier`` without neck and head, in eval mode.

    Args:
        config: Has ``model.backbone``, of mmpretrain. A ``Pretrained`` initialization in it is not used.
        checkpoint: Weights of a whole model, under ``backbone.``, or of a bare backbone. None: random weights.
        seed: Of the random weights.

    Raises:
        CheckpointError: If the checkpoint does not fit the backbone.
        ValueError: If the config has no backbone.
    """
    model = config.get('model', {})
    if 'backbone' not in model:
        raise ValueError(f'{config.filename or "The config"} has no model.backbone.')
    backbone = dict(model.backbone)
    if 'Pretrained' in str(backbone.get('init_cfg')):
        del backbone['init_cfg']
    preprocessor = model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    preprocessor = dict(
        type='ClsDataPreprocessor',
        mean=preprocessor.get('mean'),
        std=preprocessor.get('std'),
        to_rgb=preprocessor.get('to_rgb', preprocessor.get('bgr_to_rgb', False)),  # classification, self-supervision
    )
    torch.manual_seed(seed)
    encoder = MODELS.build(dict(type='ImageClassifier', backbone=backbone, data_preprocessor=preprocessor))
    encoder = revert_sync_batchnorm(encoder)
    if checkpoint is None:
        encoder.backbone.init_weights()
    else:
        has_prefix = any(key.startswith('backbone.') for key in read_state_dict(checkpoint))
        load_pretrained(encoder.backbone, checkpoint, 'backbone.' if has_prefix else None)
    return encoder.eval()


@torch.no_grad()
def calibrate_batch_norm(model: BaseModel, loader: DataLoader, num_samples: int, logger: str = 'silent') -> None:
    """Set the BatchNorm statistics of a model's backbone to those of its data, and leave these layers in eval mode.

    The initial statistics (mean 0, variance 1) let the signals of a random backbone fade with depth.

    Args:
        model: Has ``backbone`` and ``data_preprocessor``. No other module changes its mode.
        loader: Batches of images.
        num_samples: Images to average over, rounded down to whole batches, at least one; all where there are fewer.
        logger: As in mmengine's ``print_log``.
    """
    norms = [module for module in model.backbone.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train()
    # Without a whole batch, update_bn_stats would set all statistics to zero.
    num_samples = max(num_samples, loader.batch_size * dist.get_world_size())
    update_bn_stats(model, loader, num_samples, logger=logger)
    for norm in norms:
        norm.eval()


@torch.no_grad()
def extract_features(
    backbone: Callable[[Tensor], tuple[Tensor, ...]],
    preprocessor: nn.Module,
    loader: DataLoader,
    level: int | None = None,
    pool: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Extract the features of a dataset, one batch at a time. The modes of the modules are left as they are.

    Args:
        backbone: From images (N, 3, H, W) to a tuple of outputs.
        preprocessor: The model's ``data_preprocessor``.
        loader: Batches of images.
        level: Which of the feature maps (N, C, H, W) to take. None: the last one, or the last output of a backbone
            without feature maps. Supervised Mobile-Formers return tokens too.
        pool: Average feature maps over their positions.

    Yields:
        Features, (N, C, H, W) or (N, C), in float32, and labels (N,), None for a dataset without labels.

    Raises:
        ValueError: If the backbone has no feature map of this level.
    """
    for data in loader:
        data = preprocessor(data, False)
        outputs = backbone(data['inputs'])
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        maps = [output for output in outputs if output.ndim == 4]
        if level is not None and not -len(maps) <= level < len(maps):
            raise ValueError(
                f'{type(backbone).__name__} gives {len(maps)} feature maps (N, C, H, W), and level={level} is none of '
                "them. Choose another level, or the backbone's out_indices (out_type='featmap' where it has one)."
            )
        features = (maps or outputs)[-1 if level is None else level].float()
        if pool and features.ndim == 4:
            features = features.mean((2, 3))
        samples = data.get('data_samples')
        labeled = samples is not None and 'gt_label' in samples[0]
        yield features, torch.cat([each.gt_label for each in samples]).to(features.device) if labeled else None


class Moments:
    """Sums over pairs (u, v) of C-vectors in float64, from which means, covariances and linear maps u -> v follow."""

    def __init__(self) -> None:
        self.uu: Tensor | float = 0.0  # sum of (u, 1) (u, 1)^T, (C + 1, C + 1)
        self.vu: Tensor | float = 0.0  # sum of v (u, 1)^T, (C, C + 1)
        self.vv: Tensor | float = 0.0  # sum of |v|^2

    def add(self, u: Tensor, v: Tensor | None = None) -> None:
        """Add the pairs of all positions of features (N, C) or (N, C, H, W); without ``v``, the pairs (u, u)."""
        u, v = (z.double().transpose(0, 1).flatten(1) for z in (u, u if v is None else v))  # (C, pairs)
        u = F.pad(u, (0, 0, 0, 1), value=1)
        self.uu = self.uu + u @ u.mT
        self.vu = self.vu + v @ u.mT
        self.vv = self.vv + v.square().sum()

    @property
    def count(self) -> int:
        """How many pairs were added."""
        return int(self.uu[-1, -1])

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean (C,) and covariance (C, C) of u."""
        moments = self.uu / self.uu[-1, -1]
        mean = moments[-1, :-1]
        return mean, moments[:-1, :-1] - mean.outer(mean)

    def r2(self, matrix: Tensor) -> float:
        """R^2 of predicting v as ``matrix`` u: 1 - residual / total, the total around the mean of each channel."""
        residual = self.vv - 2 * (matrix * self.vu[:, :-1]).sum() + ((matrix @ self.uu[:-1, :-1]) * matrix).sum()
        total = self.vv - self.vu[:, -1].square().sum() / self.count
        return float(1 - residual / total)
