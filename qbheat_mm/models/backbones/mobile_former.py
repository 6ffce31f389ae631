"""Mobile-Former: a light CNN and a few global tokens that talk to each other in every block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from ...arguments import InitConfig, check_arguments
from ...checkpoint import load_pretrained
from ..utils.channel_shuffle import ChannelShuffle

# Every row of `blocks` is (expansion, channels, stride, second expansion). A row whose second expansion is
# 0 has no tokens; one with stride 2 is a `DownBlock`, which alone uses the second expansion.
# fmt: off
ARCH_SETTINGS: dict[str, dict] = {
    '508m': dict(stem_channels=24, token_dims=192, num_tokens=6, blocks=[
        (2, 24, 1, 0), (6, 40, 2, 4), (3, 40, 1, 3), (6, 72, 2, 4), (3, 72, 1, 3), (6, 128, 2, 4),
        (4, 128, 1, 4), (6, 176, 1, 4), (6, 176, 1, 4), (6, 240, 2, 4), (6, 240, 1, 4), (6, 240, 1, 4),
    ]),
    '294m': dict(stem_channels=16, token_dims=192, num_tokens=6, blocks=[
        (2, 16, 1, 0), (6, 24, 2, 4), (4, 24, 1, 4), (6, 48, 2, 4), (4, 48, 1, 4), (6, 96, 2, 4),
        (4, 96, 1, 4), (6, 128, 1, 4), (6, 128, 1, 4), (6, 192, 2, 4), (6, 192, 1, 4), (6, 192, 1, 4),
    ]),
    '214m': dict(stem_channels=12, token_dims=192, num_tokens=6, blocks=[
        (2, 12, 1, 0), (6, 20, 2, 4), (3, 20, 1, 4), (6, 40, 2, 4), (4, 40, 1, 4), (6, 80, 2, 4),
        (4, 80, 1, 4), (6, 112, 1, 4), (6, 112, 1, 4), (6, 160, 2, 4), (6, 160, 1, 4), (6, 160, 1, 4),
    ]),
    '151m': dict(stem_channels=12, token_dims=192, num_tokens=6, blocks=[
        (2, 12, 1, 0), (6, 16, 2, 4), (3, 16, 1, 3), (6, 32, 2, 4), (3, 32, 1, 3), (6, 64, 2, 4),
        (4, 64, 1, 4), (6, 88, 1, 4), (6, 88, 1, 4), (6, 128, 2, 4), (6, 128, 1, 4), (6, 128, 1, 4),
    ]),
    '96m': dict(stem_channels=12, token_dims=128, num_tokens=4, blocks=[
        (2, 12, 1, 0), (6, 16, 2, 4), (6, 32, 2, 4), (3, 32, 1, 3), (6, 64, 2, 4),
        (4, 64, 1, 4), (6, 88, 1, 4), (6, 128, 2, 4), (6, 128, 1, 4),
    ]),
    '52m': dict(stem_channels=8, token_dims=128, num_tokens=3, blocks=[
        (3, 12, 2, 0), (3, 12, 1, 3), (6, 24, 2, 4), (3, 24, 1, 3), (6, 48, 2, 4),
        (4, 48, 1, 4), (6, 64, 1, 4), (6, 96, 2, 4), (6, 96, 1, 4),
    ]),
    # Ours, not the paper's: QB-Heat's encoder ends at stride 16 (configs/mobile_former/README.md, how it was chosen).
    '285m': dict(stem_channels=16, token_dims=192, num_tokens=6, blocks=[
        (2, 16, 1, 0), (6, 16, 2, 4), (4, 16, 1, 4), (6, 32, 2, 4), (4, 32, 1, 4), (6, 96, 2, 4), (4, 96, 1, 4),
        (4, 112, 1, 4), (4, 112, 1, 4), (4, 112, 1, 4), (4, 160, 1, 4), (4, 160, 1, 4), (4, 160, 1, 4),
    ]),
}
# fmt: on
ARCH_SETTINGS['26m'] = dict(ARCH_SETTINGS['52m'], groups=4)


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, L, C) -> (N, heads, L, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _pixel_heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, C, H, W) -> (N, heads, C / heads, H W), a view in both memory formats."""
    return x.flatten(2).unflatten(1, (num_heads, -1))


class _DynamicMax(torch.autograd.Function):
    """max(a1 x, a2 x), keeping x and the coefficients for the backward pass but no product of them.

    Every full-size step has at most one broadcast operand: with two, PyTorch's CPU kernels do not vectorize.
    """

    @staticmethod
    def forward(ctx, x: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
        ctx.save_for_backward(x, a1, a2)
        out = a1 * x
        return torch.maximum(out, a2 * x, out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a1, a2 = ctx.saved_tensors
        larger, smaller = torch.maximum(a1, a2), torch.minimum(a1, a2)
        # The coefficient that won, the larger one where x > 0, gets grad * x summed over positions.
        product = grad * x
        total = product.sum((2, 3), keepdim=True)
        positive = torch.ops.aten.threshold_backward(grad, x, 0)  # grad where x > 0, else 0
        above = torch.mul(positive, x, out=product).sum((2, 3), keepdim=True)
        grad_x = positive.mul_(larger - smaller).addcmul_(grad, smaller)
        grad_a1 = torch.where(a1 >= a2, above, total - above)
        return grad_x, grad_a1, total - grad_a1


class DyReLU(nn.Module):
    """Dynamic ReLU, max(a1 x, a2 x) per channel; a small network computes a1, a2 from the first token.

    Args:
        token_dims: Width d of a token.
        channels: Channels C of the features.
    """

    def __init__(self, token_dims: int, channels: int) -> None:
        super().__init__()
        self.hyper = nn.Sequential(
            nn.Linear(token_dims, token_dims // 4), nn.ReLU(inplace=True), nn.Linear(token_dims // 4, 2 * channels)
        )

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Activate ``x`` (N, C, H, W), driven by ``token`` (N, d)."""
        theta = F.hardsigmoid(self.hyper(token)).to(x.dtype)[..., None, None]
        a1, a2 = theta.chunk(2, dim=1)
        a1, a2 = 2 * a1, 2 * a2 - 1
        if self.training and torch.is_grad_enabled() and not (is_compiling() or torch.jit.is_tracing()):
            return _DynamicMax.apply(x, a1, a2)
        return torch.maximum(a1 * x, a2 * x)  # what compilers fuse and exporters know


class LocalToGlobal(nn.Module):
    """Tokens gather from the feature map by cross-attention; the features are not projected.

    Args:
        token_dims: Width d of a token.
        channels: Channels C of the features.
        num_heads: Attention heads.
    """

    def __init__(self, token_dims: int, channels: int, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.query = nn.Linear(token_dims, channels)
        self.gate = nn.Linear(token_dims, channels)
        self.proj = nn.Linear(channels, token_dims)
        self.norm = nn.LayerNorm(token_dims)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(N, C, H, W), (N, M, d) -> tokens (N, M, d)."""
        pixels = _pixel_heads(x, self.num_heads)  # (N, 2, C/2, HW): keys and values
        queries = _split_heads(self.query(tokens) * self.scale, self.num_heads)  # (N, 2, M, C/2)
        attention = (queries @ pixels).softmax(dim=-1)  # (N, 2, M, HW)
        gathered = (attention @ pixels.transpose(-1, -2)).transpose(1, 2).flatten(2)  # (N, M, C)
        gathered = gathered * (2 * F.hardsigmoid(self.gate(tokens)))
        return self.norm(tokens + self.proj(gathered))


class TokenBlock(nn.Module):
    """Self-attention among the tokens and a feed-forward network, both post-norm.

    Args:
        token_dims: Width d of a token.
        num_heads: Attention heads.
    """

    def __init__(self, token_dims: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (token_dims // num_heads) ** -0.5
        self.query = nn.Linear(token_dims, token_dims)
        self.proj = nn.Linear(token_dims, token_dims)
        self.norm = nn.LayerNorm(token_dims)
        self.ffn = nn.Sequential(
            nn.Linear(token_dims, 2 * token_dims), nn.GELU(), nn.Linear(2 * token_dims, token_dims)
        )
        self.ffn_norm = nn.LayerNorm(token_dims)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, M, d) -> (N, M, d)."""
        keys = _split_heads(tokens, self.num_heads)  # values too
        queries = _split_heads(self.query(tokens) * self.scale, self.num_heads)
        attention = (queries @ keys.transpose(-1, -2).to(queries.dtype)).softmax(dim=-1)
        mixed = (attention @ keys.to(attention.dtype)).transpose(1, 2).flatten(2)
        tokens = self.norm(tokens + self.proj(mixed))
        return self.ffn_norm(tokens + self.ffn(tokens))


class GlobalToLocal(nn.Module):
    """The feature map reads from the tokens by cross-attention; the features are not projected.

    Args:
        token_dims: Width d of a token.
        channels: Channels C of the features.
        num_heads: Attention heads.
    """

    def __init__(self, token_dims: int, channels: int, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.key = nn.Linear(token_dims, channels)
        self.value = nn.Linear(token_dims, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(N, C, H, W), (N, M, d) -> features (N, C, H, W)."""
        pixels = _pixel_heads(x, self.num_heads)  # (N, 2, C/2, HW): queries
        keys = _split_heads(self.key(tokens) * self.scale, self.num_heads)  # (N, 2, M, C/2)
        values = _split_heads(self.value(tokens), self.num_heads)
        attention = (keys @ pixels).softmax(dim=-2)  # (N, 2, M, HW), over the tokens
        return x + (values.transpose(-1, -2) @ attention.to(values.dtype)).view(x.shape)


def _conv_bn(*args: int, **kwargs: int) -> nn.Sequential:
    conv = nn.Conv2d(*args, bias=False, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


def _depthwise_bn(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3, ``out_channels / in_channels`` outputs per input channel."""
    return _conv_bn(in_channels, out_channels, 3, stride, padding=1, groups=in_channels)


def _shuffle(groups: int, wanted: bool) -> nn.Module:
    """The channel shuffle that lets grouped 1x1 convolutions (26m) see each other's channels."""
    return ChannelShuffle(groups) if wanted else nn.Identity()


class LiteBlock(nn.Module):
    """Token-free bottleneck: 3x3 depthwise expansion, 1x1 projection."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int, groups: int) -> None:
        super().__init__()
        hidden = round(in_channels * expansion)
        self.depthwise = _depthwise_bn(in_channels, hidden, stride)
        self.act = nn.ReLU6(inplace=True)
        self.shuffle = _shuffle(in_channels, groups > 1)
        self.project = _conv_bn(hidden, channels, 1, groups=groups)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C_in, H, W), (N, M, d) -> (N, C, H / stride, W / stride), the tokens as they came."""
        out = self.project(self.shuffle(self.act(self.depthwise(x))))
        return x + out if self.residual else out, tokens


class MobileBlock(nn.Module):
    """Inverted bottleneck (1x1, 3x3 depthwise, 1x1) with dynamic ReLUs; the authors' DnaBlock."""

    def __init__(
        self, in_channels: int, channels: int, expansion: int, token_dims: int, groups: int, drop_path: float
    ) -> None:
        super().__init__()
        hidden = round(in_channels * expansion)
        self.expand = _conv_bn(in_channels, hidden, 1, groups=groups)
        self.shuffle1 = _shuffle(groups, groups > 1)
        self.act1 = DyReLU(token_dims, hidden)
        self.depthwise = _depthwise_bn(hidden, hidden)
        self.act2 = DyReLU(token_dims, hidden)
        self.project = _conv_bn(hidden, channels, 1, groups=groups)
        self.shuffle2 = _shuffle(groups, groups > 1)
        self.drop_path = DropPath(drop_path)
        self.residual = in_channels == channels

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """(N, C_in, H, W), (N, d) -> (N, C, H, W)."""
        out = self.act1(self.shuffle1(self.expand(x)), token)
        out = self.act2(self.depthwise(out), token)
        out = self.shuffle2(self.project(out))
        return x + self.drop_path(out) if self.residual else out


class DownBlock(nn.Module):
    """Two depthwise-separable convolutions, the first with stride; the authors' DnaBlock3."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        expansion: int,
        second_expansion: int,
        stride: int,
        token_dims: int,
        groups: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        hidden = round(in_channels * expansion)
        self.depthwise1 = _depthwise_bn(in_channels, hidden, stride)
        self.shuffle1 = _shuffle(in_channels, groups > 1)
        self.act1 = DyReLU(token_dims, hidden)
        self.project1 = _conv_bn(hidden, channels, 1, groups=groups)

        hidden = round(channels * second_expansion)
        self.depthwise2 = _depthwise_bn(channels, hidden)
        self.shuffle2 = _shuffle(channels, groups > 1)
        self.act2 = DyReLU(token_dims, hidden)
        self.project2 = _conv_bn(hidden, channels, 1, groups=groups)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """(N, C_in, H, W), (N, d) -> (N, C, H / stride, W / stride)."""
        x = self.project1(self.act1(self.shuffle1(self.depthwise1(x)), token))
        out = self.project2(self.act2(self.shuffle2(self.depthwise2(x)), token))
        return x + self.drop_path(out)


class MobileFormerBlock(nn.Module):
    """Local->Global, token block, mobile part, Global->Local, in this order.

    Args:
        mobile: The mobile part, `MobileBlock` or `DownBlock`.
        in_channels: Channels of the incoming features.
        channels: Channels of the outgoing features.
        token_dims: Width d of a token.
    """

    def __init__(self, mobile: nn.Module, in_channels: int, channels: int, token_dims: int) -> None:
        super().__init__()
        self.local_to_global = LocalToGlobal(token_dims, in_channels)
        self.token_block = TokenBlock(token_dims)
        self.mobile = mobile
        self.global_to_local = GlobalToLocal(token_dims, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C_in, H, W), (N, M, d) -> (N, C, H', W'), (N, M, d)."""
        tokens = self.token_block(self.local_to_global(x, tokens))
        x = self.mobile(x, tokens[:, 0])
        return self.global_to_local(x, tokens), tokens


def _check_arch(stem_channels: int, token_dims: int, num_tokens: int, blocks: Sequence, groups: int = 1) -> None:
    """Refuse values that no layer can be built with.

    Raises:
        ValueError: With the field.
    """
    numbers = dict(stem_channels=stem_channels, token_dims=token_dims, num_tokens=num_tokens, groups=groups)
    for field, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ValueError(f'arch.{field}={value!r} must be a whole number larger than 0')
    if token_dims % 4:
        raise ValueError(f'arch.token_dims={token_dims} must be a multiple of 4, the attention heads of the tokens')
    if not isinstance(blocks, (list, tuple)):
        raise ValueError(f'arch.blocks={blocks!r} must be a list of rows')
    for i, row in enumerate(blocks):
        whole = isinstance(row, (list, tuple)) and len(row) == 4 and all(type(value) is int for value in row)
        if not whole or min(row[:2]) <= 0 or row[2] not in (1, 2) or row[3] < 0:
            raise ValueError(
                f'arch.blocks[{i}]={row!r} must be (expansion, channels, stride of 1 or 2, second expansion or 0)'
            )


@MODELS.register_module()
class MobileFormer(BaseBackbone):
    """Mobile-Former, numerically as its authors compute it.

    `Mobile-Former: Bridging MobileNet and Transformer <https://arxiv.org/abs/2108.05895>`_.

    A *stage* holds the blocks of one resolution: stage 0 ends at stride 4 (the stem's stride-2 blocks belong
    to it), stage 1 at 8, stage 2 at 16, stage 3, where the layout has one, at 32. What the chosen outputs do
    not depend on (stages behind the last of ``out_indices``; the last Local->Global where no tokens are asked
    for) is built, so that checkpoints fit, but neither run nor trained.

    Args:
        arch: A name in ``ARCH_SETTINGS`` or a dict with its fields (``groups`` is optional, 1).
        out_indices: Stages whose features are returned; negative numbers count from the end.
        output_stride: 32, or 16, where the last stage of a stride-32 layout keeps its resolution. None takes
            the layout's own.
        out_tokens: Also return the tokens, (N, M, d), updated once more from the last features, as last item.
        drop_path_rate: Stochastic depth of the mobile parts, rising linearly to this rate at the last block.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem, the token table and the first k stages
            (no gradient, and eval mode after every ``train()``); the number of stages freezes all.
        norm_eval: Keep every BatchNorm in eval mode.
        init_cfg: Initialization. ``Pretrained`` is loaded strictly and with ``weights_only=True``.
    """

    @check_arguments
    def __init__(
        self,
        arch: str | dict = '294m',
        out_indices: Sequence[int] | range = (-1,),
        output_stride: int | None = None,
        out_tokens: bool = False,
        drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: InitConfig = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                dict(type='Kaiming', layer='Conv2d', mode='fan_out'),
                dict(type='TruncNormal', layer='Linear', std=0.02),
            ]
        super().__init__(init_cfg)
        settings = self._settings(arch)
        rows = settings['blocks']
        stage_of_row, strides = self._layout(rows, output_stride)
        token_dims, groups = settings['token_dims'], settings.get('groups', 1)
        in_channels = settings['stem_channels']

        self.stem = nn.Sequential(*_conv_bn(3, in_channels, 3, stride=2, padding=1), nn.ReLU6(inplace=True))
        self.tokens = nn.Parameter(torch.randn(settings['num_tokens'], token_dims))
        self.stages = nn.ModuleList(nn.ModuleList() for _ in range(stage_of_row[-1] + 1))
        for i, (expansion, channels, nominal_stride, second_expansion) in enumerate(rows):
            common = dict(token_dims=token_dims, groups=groups, drop_path=drop_path_rate * i / max(len(rows) - 1, 1))
            if second_expansion == 0:
                block = LiteBlock(in_channels, channels, expansion, strides[i], groups)
            elif nominal_stride == 2:
                mobile = DownBlock(in_channels, channels, expansion, second_expansion, strides[i], **common)
                block = MobileFormerBlock(mobile, in_channels, channels, token_dims)
            else:
                mobile = MobileBlock(in_channels, channels, expansion, **common)
                block = MobileFormerBlock(mobile, in_channels, channels, token_dims)
            self.stages[stage_of_row[i]].append(block)
            in_channels = channels
        self.last_local_to_global = LocalToGlobal(token_dims, in_channels)

        num_stages = len(self.stages)
        if not out_indices or not all(-num_stages <= i < num_stages for i in out_indices):
            raise ValueError(f'out_indices={tuple(out_indices)}: this layout has the stages 0 to {num_stages - 1}')
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages={frozen_stages}: this layout takes -1 (nothing) to {num_stages} (all)')
        self.out_indices = tuple(sorted(i % num_stages for i in out_indices))
        self.out_tokens = out_tokens
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        for module in (*self._unused_modules(), *self._frozen_modules()):
            module.requires_grad_(False)
        if frozen_stages > 0:  # the first stage reads the token table
            self.tokens.requires_grad_(False)

    @staticmethod
    def _settings(arch: str | dict) -> dict:
        if isinstance(arch, dict):
            required = {'stem_channels', 'token_dims', 'num_tokens', 'blocks'}
            if missing := required - set(arch):
                raise ValueError(f'arch lacks the field(s) {", ".join(sorted(missing))}')
            if surplus := set(arch) - required - {'groups'}:
                raise ValueError(f'arch has the unknown field(s) {", ".join(sorted(surplus))}')
            _check_arch(**arch)
            return arch
        if arch not in ARCH_SETTINGS:
            raise ValueError(f'arch={arch!r} is not one of {", ".join(ARCH_SETTINGS)}, nor a dict')
        return ARCH_SETTINGS[arch]

    @staticmethod
    def _layout(rows: Sequence[tuple], output_stride: int | None) -> tuple[list[int], list[int]]:
        """The stage that each row belongs to, and the stride it is built with."""
        strides = [row[2] for row in rows]
        native, reductions = 2 * prod(strides), list(accumulate(strides, mul, initial=2))[1:]
        if native < 4:
            raise ValueError(f'the blocks of arch end at stride {native}; the first stage needs stride 4')
        if output_stride not in (None, native):
            if (native, output_stride) != (32, 16):
                allowed = '32 or 16' if native == 32 else str(native)
                raise ValueError(f'output_stride={output_stride}: this layout takes {allowed}')
            strides[reductions.index(32)] = 1  # the last stage keeps its resolution
        stages = [max(reduction.bit_length() - 3, 0) for reduction in reductions]  # 2, 4 -> 0; 8 -> 1; ...
        return stages, strides

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        frozen = [self.stem, *self.stages[: self.frozen_stages]]
        return [*frozen, self.last_local_to_global] if self.frozen_stages == len(self.stages) else frozen

    def _unused_modules(self) -> list[nn.Module]:
        if self.out_tokens:
            return []
        return [*self.stages[self.out_indices[-1] + 1 :], self.last_local_to_global]

    def init_weights(self) -> None:
        """Initialize, or load a ``Pretrained`` checkpoint strictly.

        Raises:
            CheckpointError: If a key is missing, unexpected or of another shape.
        """
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            load_pretrained(self, self.init_cfg['checkpoint'], self.init_cfg.get('prefix'))
            self.is_init = True
        else:
            super().init_weights()

    def train(self, mode: bool = True) -> MobileFormer:
        """Set the mode; frozen parts, and with ``norm_eval`` every BatchNorm, stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            x: (N, 3, H, W), at least 32 px a side.

        Returns:
            The features of each stage in ``out_indices``, (N, C_i, H / s_i, W / s_i), and behind them, with
            ``out_tokens``, the tokens (N, M, d). On a CPU the features come in the channels_last memory format.
        """
        if x.is_cpu and not is_compiling():  # where convolutions and norms take half as long with it
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        tokens = self.tokens.expand(x.shape[0], -1, -1)
        outs: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            for block in stage:
                x, tokens = block(x, tokens)
            if i in self.out_indices:
                outs.append(x)
            if i == self.out_indices[-1] and not self.out_tokens:
                break
        if self.out_tokens:
            outs.append(self.last_local_to_global(x, tokens))
        return tuple(outs)
