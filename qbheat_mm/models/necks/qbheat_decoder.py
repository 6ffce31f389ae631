"""The decoder of QB-Heat: from the feature map of the whole image to one prediction per position."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...arguments import Depth, InitConfig, Size, check_arguments
from ..utils import gather_tokens, sincos_position_embedding


class AttentionLayer(TransformerEncoderLayer):
    """mmpretrain's pre-norm transformer layer, which can compute the output at a subset of the positions."""

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """(N, L, D) -> (N, L, D); with ``ids`` (N, M), (N, M, D): all positions are keys, these alone are queries."""
        if ids is None:
            return super().forward(x)
        attention, dims = self.attn, self.embed_dims
        keys = self.ln1(x)
        bias = attention.qkv.bias
        queries = F.linear(gather_tokens(keys, ids), attention.qkv.weight[:dims], bias[:dims])
        keys, values = F.linear(keys, attention.qkv.weight[dims:], bias[dims:]).chunk(2, dim=-1)
        heads = (each.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for each in (queries, keys, values))
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)  # (N, M, D)
        x = gather_tokens(x, ids) + attention.proj(mixed)
        return self.ffn(self.ln2(x), identity=x)


class LocalLayer(BaseModule):
    """The feed-forward half of a pre-norm transformer layer: every position by itself."""

    def __init__(self, embed_dims: int, feedforward_channels: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(embed_dims)
        self.ffn = FFN(embed_dims, feedforward_channels, act_cfg=dict(type='GELU'))

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return self.ffn(self.ln(x), identity=x)


@MODELS.register_module()
class QBHeatDecoder(BaseModule):
    """Decode a feature map into one vector per position: the pixels of its patch, or another target.

    The paper does not describe its decoder in the text at hand; size and form are our choice.

    Args:
        in_channels: Channels C of the features.
        out_channels: Values V predicted per position; 3 patch_size^2 for pixels.
        mixer: ``'attention'``, pre-norm transformer layers over the whole map, or ``'local'``, the same without
            attention: no position sees another.
        embed_dims: Width D.
        depth: Layers.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward networks, in multiples of D.
        init_cfg: Initialization.

    Raises:
        ValueError: If the width does not fit the heads and the position embedding.
    """

    @check_arguments
    def __init__(
        self,
        in_channels: Size,
        out_channels: Size,
        mixer: Literal['attention', 'local'] = 'attention',
        embed_dims: Size = 96,
        depth: Depth = 1,
        num_heads: Size = 3,
        mlp_ratio: Depth = 4,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if embed_dims % 4:
            raise ValueError(f'QBHeatDecoder: embed_dims={embed_dims} must be a multiple of 4, for its positions.')
        if mixer == 'attention' and embed_dims % num_heads:
            raise ValueError(f'QBHeatDecoder: embed_dims={embed_dims} does not divide into num_heads={num_heads}.')
        self.in_channels = in_channels
        self.embed_dims = embed_dims
        self.mixer = mixer
        self.embed = nn.Linear(in_channels, embed_dims)
        hidden = mlp_ratio * embed_dims
        self.layers = nn.Sequential(
            *(
                AttentionLayer(embed_dims, num_heads, hidden)
                if mixer == 'attention'
                else LocalLayer(embed_dims, hidden)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(embed_dims)
        self.pred = nn.Linear(embed_dims, out_channels)

    def forward(self, features: Tensor, ids: Tensor | None = None) -> Tensor:
        """Decode all positions, or a subset of them.

        Args:
            features: (N, C, H, W).
            ids: (N, M), positions in the flattened map. What only other positions need is not computed.

        Returns:
            (N, H W, V), or with ``ids`` (N, M, V).
        """
        dtype = self.embed.weight.dtype  # float32, or that of model.half()
        x = self.embed(features.flatten(2).mT.to(dtype))
        x = x + sincos_position_embedding(features.shape[2:], self.embed_dims, x.device).to(dtype)
        if ids is None:
            x = self.layers(x)
        elif self.mixer == 'attention':
            x = self.layers[-1](self.layers[:-1](x), ids)
        else:
            x = self.layers(gather_tokens(x, ids))
        return self.pred(self.norm(x))
