"""Give a Whitening the statistics of its data."""

from __future__ import annotations

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor
from torch.utils.data import DataLoader

from ...models.necks.whitening import WhiteningLayer


class Moments:
    """Sums over features, in float64: their number, themselves, their products."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.sums = torch.zeros(channels + 1, channels + 1, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Count in features (N, C) or (N, C, H, W)."""
        rows = features.flatten(2).mT.reshape(-1, features.shape[1]) if features.ndim > 2 else features
        rows = torch.nn.functional.pad(rows.double(), (0, 1), value=1)  # with a 1 each: one product has all three sums
        self.sums += rows.mT @ rows

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """(C,) and (C, C), over all processes."""
        dist.all_reduce(self.sums)
        moments = self.sums / self.sums[-1, -1]
        mean = moments[-1, :-1]
        return mean, moments[:-1, :-1] - mean.outer(mean)


@torch.no_grad()
def fit_whitening(model: BaseModel, loader: DataLoader, num_samples: int) -> int:
    """Set the statistics of every Whitening of a model to those of so many samples.

    Returns:
        How many there were, by whole batches.

    Raises:
        ValueError: If it has none, or its features do not vary.
    """
    layers = [module for module in model.modules() if isinstance(module, WhiteningLayer)]
    if not layers:
        raise ValueError("WhiteningHook: the model has no Whitening. Add one to model.neck: dict(type='Whitening').")
    moments = [Moments(len(layer.mean), layer.mean.device) for layer in layers]
    for layer in layers:
        layer.set_identity()
    handles = [
        layer.register_forward_pre_hook(lambda _, args, counted=counted: counted.add(*args))
        for layer, counted in zip(layers, moments, strict=True)
    ]
    training = model.training
    model.eval()
    seen = 0
    for data in loader:
        data = model.data_preprocessor(data, False)
        model.extract_feat(data['inputs'])
        seen += len(data['inputs']) * dist.get_world_size()
        if seen >= num_samples:
            break
    model.train(training)
    for handle in handles:
        handle.remove()
    for layer, counted in zip(layers, moments, strict=True):
        layer.set_statistics(*counted.mean_and_covariance())
        if not layer.matrix.isfinite().all():
            raise ValueError(f'WhiteningHook: the features of {seen} samples do not vary; is the backbone trained?')
    return seen


@HOOKS.register_module()
class WhiteningHook(Hook):
    """Before training, set the statistics of every :class:`~qbheat_mm.models.Whitening` to those of the training data.

    They stay as they are from then on.

    Args:
        num_samples: Training samples to take them from.
    """

    def __init__(self, num_samples: int = 2048) -> None:
        self.num_samples = num_samples

    def before_train(self, runner: Runner) -> None:
        """Take the statistics, unless the run is resumed and carries them."""
        if runner.iter > 0:
            return
        seen = fit_whitening(get_ori_model(runner.model), runner.train_dataloader, self.num_samples)
        runner.logger.info(f'Whitening has the statistics of {seen} training samples.')
