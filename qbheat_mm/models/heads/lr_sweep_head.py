"""One probe at several learning rates, all from one forward pass of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Annotated

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from ...arguments import Component, check_arguments


@MODELS.register_module()
class LRSweepHead(BaseModule):
    """Independent copies of a head, each trained at a learning rate of its own.

    All start from the same weights, those that the head would have by itself, and see the same features. Nothing
    couples them, so each learns what it would learn alone. ``LRSweepOptimWrapperConstructor`` sets the rates,
    ``LRSweepAccuracy`` reports the accuracies.

    Args:
        head: Config of a classification head.
        lrs: The learning rates, for the batch size that ``auto_scale_lr`` names.
    """

    @check_arguments
    def __init__(self, head: Component, lrs: Annotated[Sequence[PositiveFloat], Field(min_length=1)]) -> None:
        super().__init__()
        if len(set(lrs)) < len(lrs):
            raise ValueError(f'LRSweepHead: lrs={tuple(lrs)} must be different numbers.')
        self.lrs = tuple(float(lr) for lr in lrs)
        first = MODELS.build(head)
        self.heads = nn.ModuleList([first, *(deepcopy(first) for _ in self.lrs[1:])])

    def init_weights(self) -> None:
        """Initialize the first head and copy its weights to the others."""
        first, *others = self.heads
        first.init_weights()
        for head in others:
            head.load_state_dict(first.state_dict())
        self.is_init = True

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Features -> logits (R, N, num_classes), R the number of rates."""
        return torch.stack([head(feats) for head in self.heads])

    def loss(self, feats: tuple[Tensor, ...], data_samples: list[DataSample], **kwargs) -> dict[str, Tensor]:
        """Each head's losses, their names with its rate; mmengine trains on the sum."""
        return {
            f'{name}_lr{lr:g}': value
            for lr, head in zip(self.lrs, self.heads)
            for name, value in head.loss(feats, data_samples, **kwargs).items()
        }

    def predict(self, feats: tuple[Tensor, ...], data_samples: list[DataSample]) -> list[DataSample]:
        """The samples with ``lr_scores`` (R, num_classes), logits, and ``rates`` (R,)."""
        for sample, scores in zip(data_samples, self(feats).unbind(1)):
            sample.set_field(scores, 'lr_scores')
            sample.set_field(self.lrs, 'rates', field_type='metainfo')
        return data_samples
