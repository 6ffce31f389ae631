"""Statistics of the training data for Whitening."""

from __future__ import annotations

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from pydantic import PositiveInt
from torch.utils.data import DataLoader

from ...arguments import check_arguments
from ...evaluation.functional.features import Moments, extract_features
from ...models.necks.whitening import WhiteningLayer


@torch.no_grad()
def fit_whitening(model: BaseModel, loader: DataLoader, num_samples: int) -> int:
    """Set the statistics of every Whitening of a model to those of ``num_samples`` samples.

    Returns:
        The number of samples used, a multiple of the batch size.

    Raises:
        ValueError: If the model has no Whitening, or its features do not vary.
    """
    layers = [module for module in model.modules() if isinstance(module, WhiteningLayer)]
    if not layers:
        raise ValueError("WhiteningHook: the model has no Whitening. Add one to model.neck: dict(type='Whitening').")
    moments = [Moments() for _ in layers]
    for layer in layers:
        layer.set_identity()
    handles = [
        layer.register_forward_pre_hook(lambda _, args, each=each: each.add(*args))
        for layer, each in zip(layers, moments, strict=True)
    ]
    training = model.training
    model.eval()
    seen = 0
    for features, _ in extract_features(model.extract_feat, model.data_preprocessor, loader):
        seen += len(features) * dist.get_world_size()
        if seen >= num_samples:
            break
    model.train(training)
    for handle in handles:
        handle.remove()
    for layer, each in zip(layers, moments, strict=True):
        dist.all_reduce(each.uu)
        layer.set_statistics(*each.mean_and_covariance())
        if not layer.matrix.isfinite().all():
            raise ValueError(f'WhiteningHook: the features of {seen} samples do not vary; is the backbone trained?')
    return seen


@HOOKS.register_module()
class WhiteningHook(Hook):
    """Before training, set the statistics of every :class:`~qbheat_mm.models.Whitening` to those of the training data.

    The statistics do not change afterwards.

    Args:
        num_samples: Training samples to compute them from.
    """

    @check_arguments
    def __init__(self, num_samples: PositiveInt = 2048) -> None:
        self.num_samples = num_samples

    def before_train(self, runner: Runner) -> None:
        """Compute the statistics, unless the run is resumed: its checkpoint holds them."""
        if runner.iter > 0:
            return
        seen = fit_whitening(get_ori_model(runner.model), runner.train_dataloader, self.num_samples)
        runner.logger.info(f'Whitening uses the statistics of {seen} training samples.')
