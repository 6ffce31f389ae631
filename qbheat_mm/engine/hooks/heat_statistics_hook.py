"""Log what the generators of the heat equation become."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from ...heat import commutator
from ...models import HeatNeck


@HOOKS.register_module()
class HeatStatisticsHook(Hook):
    """After each epoch, log Frobenius norms, spectral radii and the relative commutator of A and B.

    They join the log's scalars as ``heat/norm_a``, ``heat/norm_b``, ``heat/radius_a``, ``heat/radius_b`` and
    ``heat/commutator``, ||AB - BA|| / ||AB||. Where each direction has its own matrices, the largest counts.
    """

    @torch.no_grad()
    def after_train_epoch(self, runner: Runner) -> None:
        """Log, unless there are no generators."""
        neck = getattr(get_ori_model(runner.model), 'neck', None)
        statistics = heat_statistics(neck) if isinstance(neck, HeatNeck) else {}
        if statistics:
            text = ', '.join(f'{name}: {value:.4g}' for name, value in statistics.items())
            runner.logger.info(f'Epoch(heat) [{runner.epoch + 1}] {text}')
            runner.visualizer.add_scalars(statistics, step=runner.iter)


def heat_statistics(neck: HeatNeck) -> dict[str, float]:
    """The figures of :class:`HeatStatisticsHook`; empty where there are no generators."""
    generators = neck.generators()
    if generators is None:
        return {}
    a, b = (each.detach().double() for each in generators)
    statistics = {}
    for name, each in (('a', a), ('b', b)):
        statistics[f'heat/norm_{name}'] = float(each.flatten(1).norm(dim=1).max())
        statistics[f'heat/radius_{name}'] = float(torch.linalg.eigvals(each).abs().max())
    products, commutators = (a[:, None] @ b[None]), commutator(a[:, None], b[None])
    ratio = commutators.flatten(2).norm(dim=2) / products.flatten(2).norm(dim=2).clamp_min(1e-12)
    statistics['heat/commutator'] = float(ratio.max())
    return statistics
