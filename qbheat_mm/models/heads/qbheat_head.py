"""From the feature map of the whole image to pixels, and the loss on the masked ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_arguments


def gather_tokens(x: Tensor, cells: Tensor) -> Tensor:
    """The positions ``cells`` (N, M) of each sequence in ``x`` (N, L, D) -> (N, M, D)."""
    start = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (start + cells).flatten()).unflatten(0, cells.shape)


def gather_runs(images: Tensor, planes: Tensor, rows: Tensor, columns: Tensor, length: int) -> Tensor:
    """Runs of pixels, which are cheaper to gather than pixels.

    Args:
        images: (N, C, H, W).
        planes: Which of the N C planes; broadcast against the next two.
        rows: Which row of it.
        columns: Which run of the row, counted in runs.
        length: Pixels of a run, a divisor of W.

    Returns:
        (..., length).
    """
    height, width = images.shape[-2:]
    runs = (planes * height + rows) * (width // length) + columns
    return images.reshape(-1, length).index_select(0, runs.flatten()).unflatten(0, runs.shape)


def gather_patches(images: Tensor, cells: Tensor, size: int) -> Tensor:
    """The square patches at ``cells`` (N, M) of images (N, C, H, W) -> (N, M, C size^2), channel by channel."""
    count, channels, _, width = images.shape
    planes = torch.arange(count * channels, device=images.device).view(count, 1, channels, 1)
    cells = cells[..., None, None]
    rows = cells // (width // size) * size + torch.arange(size, device=images.device)  # (N, M, 1, size)
    return gather_runs(images, planes, rows, cells % (width // size), size).flatten(2)


def normalize_patches(patches: Tensor) -> Tensor:
    """MAE's normalization of patches (..., D): by the root of the unbiased variance + 1e-6.

    Written as a layer norm, whose variance is the biased one: on a CPU it takes a twentieth of ``Tensor.var``'s time.
    """
    count = patches.shape[-1]
    shrink = (count - 1) / count
    weight = patches.new_full((count,), shrink**0.5)
    return F.layer_norm(patches, (count,), weight, eps=1e-6 * shrink)


class AttentionLayer(TransformerEncoderLayer):
    """mmpretrain's pre-norm transformer layer, which can stop at the positions whose result is wanted."""

    def forward(self, x: Tensor, cells: Tensor | None = None) -> Tensor:
        """(N, L, D) -> (N, L, D); with ``cells`` (N, M), every position is read but those alone are computed."""
        if cells is None:
            return super().forward(x)
        attention, dims = self.attn, self.embed_dims
        keys = self.ln1(x)
        bias = attention.qkv.bias
        queries = F.linear(gather_tokens(keys, cells), attention.qkv.weight[:dims], bias[:dims])
        keys, values = F.linear(keys, attention.qkv.weight[dims:], bias[dims:]).chunk(2, dim=-1)
        heads = (each.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for each in (queries, keys, values))
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)  # (N, M, D)
        x = gather_tokens(x, cells) + attention.proj(mixed)
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
    """Decode a feature map into one patch of pixels a position.

    The paper's decoder is not known; size and form are our choice.

    Args:
        in_channels: Channels C of the features.
        grid_size: Side of the (square) feature map in cells.
        patch_size: Side of a position's patch in pixels: the backbone's output stride.
        mixer: ``'attention'``, pre-norm transformer layers over the whole map, or ``'local'``, the same without
            attention: no position sees another.
        embed_dims: Width D.
        depth: Layers.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward networks, in widths.
    """

    @check_arguments('in_channels', 'grid_size', 'patch_size', 'embed_dims', 'depth', 'num_heads', 'mlp_ratio')
    def __init__(
        self,
        in_channels: int,
        grid_size: int,
        patch_size: int = 16,
        mixer: str = 'attention',
        embed_dims: int = 96,
        depth: int = 1,
        num_heads: int = 3,
        mlp_ratio: int = 4,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if mixer not in ('attention', 'local'):
            raise ValueError(f"QBHeatDecoder: mixer='{mixer}' is neither 'attention' nor 'local'.")
        if embed_dims % 4:
            raise ValueError(f'QBHeatDecoder: embed_dims={embed_dims} must be a multiple of 4, for its position codes.')
        if mixer == 'attention' and embed_dims % num_heads:
            raise ValueError(f'QBHeatDecoder: embed_dims={embed_dims} does not divide into num_heads={num_heads}.')
        self.in_channels = in_channels
        self.mixer = mixer
        self.embed = nn.Linear(in_channels, embed_dims)
        position = build_2d_sincos_position_embedding(grid_size, embed_dims)
        self.register_buffer('position', position, persistent=False)  # (1, L, D)
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
        self.pixels = nn.Linear(embed_dims, 3 * patch_size**2)

    def forward(self, features: Tensor, cells: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, H W, 3 patch_size^2), pixels in the order row, column, channel.

        With ``cells``, (N, M), the patches at these positions alone, (N, M, 3 patch_size^2): what only others depend
        on is not computed.
        """
        x = self.embed(features.flatten(2).mT) + self.position
        if cells is None:
            x = self.layers(x)
        elif self.mixer == 'attention':
            x = self.layers[-1](self.layers[:-1](x), cells)
        else:
            x = self.layers(gather_tokens(x, cells))
        return self.pixels(self.norm(x))


@MODELS.register_module()
class QBHeatPretrainHead(MAEPretrainHead):
    """MAE's pixel targets and loss, on a map of features instead of a list of visible tokens.

    Args:
        decoder: Config of the decoder, ``QBHeatDecoder``, without ``grid_size`` and ``patch_size``.
        img_size: Side of the images in pixels.
        loss: Config of the loss, mmpretrain's ``PixelReconstructionLoss``; it is given masked patches alone.
        norm_pix: Normalize each target patch to mean 0 and variance 1, as MAE does.
        patch_size: Side of a patch in pixels.
    """

    @check_arguments('img_size', 'patch_size')
    def __init__(self, decoder: dict, img_size: int, loss: dict, norm_pix: bool = True, patch_size: int = 16) -> None:
        for name, config in dict(decoder=decoder, loss=loss).items():
            if not isinstance(config.get('type'), (str, type)):
                raise ValueError(f'QBHeatPretrainHead: {name}={config} names no type.')
        super().__init__(loss=loss, norm_pix=norm_pix, patch_size=patch_size)
        self.decoder = MODELS.build(dict(decoder, patch_size=patch_size, grid_size=img_size // patch_size))

    def forward(self, features: Tensor, cells: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, H W, 3 patch_size^2) in float32, or (N, M, 3 patch_size^2) at ``cells`` (N, M) alone."""
        return self.decoder(features, cells).float()

    def construct_target(self, target: Tensor, cells: Tensor | None = None) -> Tensor:
        """MAE's target for images (N, 3, H, W): (N, L, D), or (N, M, D) at ``cells`` (N, M) alone."""
        patches = self.patchify(target) if cells is None else gather_patches(target, cells, self.patch_size)
        return normalize_patches(patches) if self.norm_pix else patches

    def patchify(self, imgs: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L, 3 patch_size^2), channel by channel; MAE has channels innermost, which is slow."""
        cells = torch.arange(self.decoder.position.shape[1], device=imgs.device)
        return gather_patches(imgs, cells.expand(len(imgs), -1), self.patch_size)

    def unpatchify(self, x: Tensor) -> Tensor:
        """What :meth:`patchify` made -> (N, 3, H, W)."""
        size, cells = self.patch_size, int(x.shape[1] ** 0.5)
        x = x.view(len(x), cells, cells, self.in_channels, size, size).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(len(x), self.in_channels, cells * size, cells * size)

    def loss(self, features: Tensor, images: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """The loss on masked patches; no others are decoded.

        Args:
            features: (N, C, H, W), of the whole image.
            images: (N, 3, H patch_size, W patch_size), normalized by the data preprocessor.
            hidden: (N, M), the positions of the H W patches that are hidden from the encoder.

        Returns:
            ``loss``, a scalar.
        """
        pred = self(features, hidden)
        with torch.autocast(images.device.type, enabled=False):
            target = self.construct_target(images.float(), hidden)
            return dict(loss=self.loss_module(pred, target))

    def sample_losses(self, pred: Tensor, images: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Per image, the loss of a prediction beside that of the best constant per patch.

        Args:
            pred: (N, L, D), what :meth:`forward` returned.
            images: (N, 3, H, W), normalized.
            masked: (N, L).

        Returns:
            Two tensors (N,), means over the masked patches: of ``pred``, and of each patch's own mean, which is the
            best that one number a patch can do (with ``norm_pix``, about 1).
        """
        target = self.construct_target(images.float())
        constant = target.mean(dim=-1, keepdim=True).expand_as(target)
        weight = masked / masked.sum(1, keepdim=True)
        return tuple((self.loss_module.penalty(each, target).mean(-1) * weight).sum(1) for each in (pred, constant))

    def to_pixels(self, pred: Tensor, images: Tensor) -> Tensor:
        """Predicted patches as a image.

        With ``norm_pix`` a patch is predicted up to its mean and contrast, which are taken from ``images``.

        Args:
            pred: (N, L, D).
            images: (N, 3, H, W), normalized by the data preprocessor.

        Returns:
            (N, 3, H, W), normalized like ``images``.
        """
        if self.norm_pix:
            patches = self.patchify(images.float())
            mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
            pred = pred * (variance + 1e-6).sqrt() + mean
        return self.unpatchify(pred)
