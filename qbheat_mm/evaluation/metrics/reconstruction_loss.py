"""How well masked pixels are predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS


@METRICS.register_module()
class ReconstructionLoss(BaseMetric):
    """Mean masked loss over a validation set, beside that of the best constant per patch.

    Reads what ``QBHeat.predict`` leaves in each sample.
    """

    default_prefix = 'reconstruction'

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the losses of a batch."""
        for sample in data_samples:
            self.results.append((sample['masked_loss'], sample['constant_loss']))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over the dataset."""
        masked, constant = np.mean(results, axis=0)
        return dict(masked_loss=float(masked), constant_loss=float(constant))
