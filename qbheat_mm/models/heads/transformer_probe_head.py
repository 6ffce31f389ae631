"""The paper's probes "tran-1", "tran-4": a few transformer blocks before the linear classifier."""

from __future__ import annotations

from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...arguments import Depth, InitConfig, Size, check_arguments
from ..utils import sincos_position_embedding

# A probe asks what frozen features hold. Beyond this depth it is a network of its own that learns to see.
MAX_DEPTH = 12


@MODELS.register_module()
class TransformerProbeHead(LinearClsHead):
    """Projection, sine positions, pre-norm transformer blocks, the mean over positions, a linear classifier.

    That there is one block (tran-1) is the paper's; width, heads and the rest are our choice. It takes the feature map
    as the backbone gives it, of any size: no neck before it pools.

    Args:
        num_classes: Number of classes.
        in_channels: Channels C of the features.
        embed_dims: Width D of the blocks.
        num_heads: Attention heads.
        depth: Blocks, 1 to 12.
        mlp_ratio: Hidden width of the feed-forward networks, in widths.
        init_cfg: Initialization.
        **kwargs: Of mmpretrain's ``ClsHead``: ``loss``, ``topk``, ``cal_acc``.

    Raises:
        ValueError: If the depth makes no probe, or the width does not fit heads and positions.
    """

    @check_arguments
    def __init__(
        self,
        num_classes: Size,
        in_channels: Size,
        embed_dims: Size = 256,
        num_heads: Size = 8,
        depth: int = 1,
        mlp_ratio: Depth = 4,
        init_cfg: InitConfig = None,
        **kwargs,
    ) -> None:
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(
                f'TransformerProbeHead: depth={depth} is no probe; 1 to {MAX_DEPTH} blocks are. Without a block take '
                'LinearClsHead; with more, what is measured is the head and not the frozen features.'
            )
        if embed_dims % num_heads or embed_dims % 4:
            raise ValueError(
                f'TransformerProbeHead: embed_dims={embed_dims} must be a multiple of num_heads={num_heads}, and of 4 '
                'for the sine positions.'
            )
        super().__init__(
            num_classes,
            embed_dims,
            init_cfg=init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02),
            **kwargs,
        )
        self.embed_dims = embed_dims
        self.embed = nn.Linear(in_channels, embed_dims)
        self.layers = nn.Sequential(
            *(TransformerEncoderLayer(embed_dims, num_heads, mlp_ratio * embed_dims) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dims)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """The feature map (N, C, H, W), last of ``feats`` -> (N, D), what the linear classifier sees."""
        features = feats[-1]
        x = self.embed(features.flatten(2).mT)
        x = x + sincos_position_embedding(features.shape[2:], self.embed_dims, x.device).to(self.embed.weight.dtype)
        return self.norm(self.layers(x)).mean(1)
