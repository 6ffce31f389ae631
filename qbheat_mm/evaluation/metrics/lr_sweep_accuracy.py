"""Accuracy of each head of a LRSweepHead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS


@METRICS.register_module()
class LRSweepAccuracy(BaseMetric):
    """Top-1 accuracy in % per learning rate, and the best of them as ``top1`` with its rate, ``best_lr``.

    The best is chosen on the data that it is reported for, as benchmarks of the field do: quote it as such.

    Args:
        collect_device: Where results of several processes are collected.
    """

    default_prefix = 'accuracy'

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep which heads were right, a few bytes a sample."""
        for sample in data_samples:
            correct = sample['lr_scores'].argmax(-1) == sample['gt_label']
            self.results.append((sample['rates'], correct.cpu()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over the dataset."""
        rates = results[0][0]
        accuracy = 100 * torch.stack([correct for _, correct in results]).double().mean(0)
        best = int(accuracy.argmax())
        each = {f'top1_lr{lr:g}': value for lr, value in zip(rates, accuracy.tolist())}
        return each | dict(top1=float(accuracy[best]), best_lr=rates[best])
