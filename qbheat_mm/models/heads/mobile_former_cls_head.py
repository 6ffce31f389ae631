"""The classifier of Mobile-Former."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from pydantic import Field
from torch import Tensor

from ...arguments import InitConfig, Size, check_arguments
from ..utils.channel_shuffle import ChannelShuffle


@MODELS.register_module()
class MobileFormerClsHead(ClsHead):
    """Classifies the pooled features together with the first token, as Mobile-Former's authors do.

    The backbone runs with ``out_tokens=True``.

    Args:
        num_classes: Number of classes.
        in_channels: Channels C of the last features.
        token_dims: Width d of a token.
        hidden_channels: Width F of the hidden layer.
        groups: Groups of the 1x1 convolution; those of the backbone.
        dropout: Dropout before the last layer.
        init_cfg: Initialization.
        **kwargs: Of mmpretrain's ``ClsHead``: ``loss``, ``topk``, ``cal_acc``.
    """

    @check_arguments
    def __init__(
        self,
        num_classes: Size,
        in_channels: Size,
        token_dims: Size,
        hidden_channels: Size,
        groups: Size = 1,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        init_cfg: InitConfig = None,
        **kwargs,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                dict(type='Kaiming', layer='Conv2d', mode='fan_out'),
                dict(type='TruncNormal', layer='Linear', std=0.02),
            ]
        super().__init__(init_cfg=init_cfg, **kwargs)
        expanded = 6 * in_channels
        self.expand = nn.Sequential(
            ChannelShuffle(groups) if groups > 1 else nn.Identity(),
            nn.Conv2d(in_channels, expanded, 1, groups=groups, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU6(inplace=True),
        )
        self.hidden = nn.Sequential(
            nn.Linear(expanded + token_dims, hidden_channels),
            nn.BatchNorm1d(hidden_channels),
            nn.Hardswish(inplace=True),
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_channels, num_classes)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """What the last layer sees.

        Args:
            feats: Of the backbone; the last two are the features (N, C, H, W) and the tokens (N, M, d).

        Returns:
            (N, F).

        Raises:
            ValueError: If the tokens are not there.
        """
        if len(feats) < 2 or feats[-1].dim() != 3:
            shapes = ', '.join(str(tuple(feat.shape)) for feat in feats)
            raise ValueError(
                f'MobileFormerClsHead needs features and tokens (N, M, d), and got {shapes}: set out_tokens=True of '
                'the backbone.'
            )
        features, tokens = feats[-2:]
        pooled = F.hardswish(self.expand(features).mean((2, 3)))
        return self.hidden(torch.cat((pooled, tokens[:, 0]), dim=1))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """The backbone's features and tokens -> logits (N, num_classes)."""
        return self.fc(self.dropout(self.pre_logits(feats)))
