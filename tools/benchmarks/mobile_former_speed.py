"""Time a training step of Mobile-Former, whole and part by part, beside a plain transcription of the paper.

    python tools/benchmarks/mobile_former_speed.py --arch 294m --threads 2
    python tools/benchmarks/mobile_former_speed.py --arch 294m --device cuda --bf16

The transcription computes what the paper's text says in the order in which it says it: tokens as (M, N, d), a
dynamic ReLU as two products and their maximum, attention written out. Both models hold the same weights and must
agree before anything is timed. Rounds of the two alternate, so that a busy machine slows both; medians are shown.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from qbheat_mm.models import MobileFormer
from qbheat_mm.models.backbones import mobile_former as ours
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS


def hsigmoid(x: Tensor) -> Tensor:
    """ReLU6(x + 3) / 6."""
    return F.relu6(x + 3) / 6


class PlainDyReLU(ours.DyReLU):
    """max(a1 x, a2 x) as two products and their maximum."""

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """(N, C, H, W), (N, d) -> (N, C, H, W)."""
        theta = hsigmoid(self.hyper(token))[:, :, None, None].to(x.dtype)
        a1, a2 = theta.chunk(2, dim=1)
        return torch.max((2 * (a1 - 0.5) + 1) * x, 2 * (a2 - 0.5) * x)


class PlainLocalToGlobal(ours.LocalToGlobal):
    """Cross-attention from (M, N, d) tokens."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(N, C, H, W), (M, N, d) -> (M, N, d)."""
        (m, n, _), (_, c, h, w), heads = tokens.shape, x.shape, self.num_heads
        query = self.query(tokens).view(m, n, heads, c // heads).permute(1, 2, 0, 3)  # (N, 2, M, C/2)
        key = x.reshape(n, heads, c // heads, h * w)
        attention = ((query @ key) * (c // heads) ** -0.5).softmax(dim=-1)
        out = (attention @ key.transpose(-1, -2)).permute(2, 0, 1, 3).reshape(m, n, c)
        return self.norm(tokens + self.proj(out * (2 * hsigmoid(self.gate(tokens)))))


class PlainTokenBlock(ours.TokenBlock):
    """Self-attention among (M, N, d) tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(M, N, d) -> (M, N, d)."""
        (m, n, d), heads = tokens.shape, self.num_heads
        query = self.query(tokens).view(m, n, heads, d // heads).permute(1, 2, 0, 3)  # (N, 4, M, d/4)
        key = tokens.view(m, n, heads, d // heads).permute(1, 2, 3, 0)  # (N, 4, d/4, M)
        attention = ((query @ key.to(query.dtype)) * (d // heads) ** -0.5).softmax(dim=-1)
        out = attention @ key.transpose(-1, -2).to(attention.dtype)
        tokens = self.norm(tokens + self.proj(out.permute(2, 0, 1, 3).reshape(m, n, d)))
        return self.ffn_norm(tokens + self.ffn(tokens))


class PlainGlobalToLocal(ours.GlobalToLocal):
    """Cross-attention to (M, N, d) tokens."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(N, C, H, W), (M, N, d) -> (N, C, H, W)."""
        (m, n, _), (_, c, h, w), heads = tokens.shape, x.shape, self.num_heads
        key = self.key(tokens).view(m, n, heads, c // heads).permute(1, 2, 3, 0)  # (N, 2, C/2, M)
        value = self.value(tokens).view(m, n, heads, c // heads).permute(1, 2, 0, 3)  # (N, 2, M, C/2)
        query = x.reshape(n, heads, c // heads, h * w).transpose(-1, -2)  # (N, 2, HW, C/2)
        attention = ((query @ key.to(query.dtype)) * (c // heads) ** -0.5).softmax(dim=-1)
        out = attention @ value.to(attention.dtype)
        return x + out.transpose(-1, -2).reshape(n, c, h, w)


class PlainBlock(ours.MobileFormerBlock):
    """A block that carries (M, N, d) tokens."""

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C_in, H, W), (M, N, d) -> (N, C, H', W'), (M, N, d)."""
        tokens = self.token_block(self.local_to_global(x, tokens))
        x = self.mobile(x, tokens[0])
        return self.global_to_local(x, tokens), tokens


class PlainMobileFormer(MobileFormer):
    """A backbone that carries (M, N, d) tokens."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> (N, C, H', W'), (N, M, d)."""
        x = self.stem(x)
        tokens = self.tokens[:, None].repeat(1, len(x), 1)
        for stage in self.stages:
            for block in stage:
                x, tokens = block(x, tokens)
        return x, self.last_local_to_global(x, tokens).transpose(0, 1)


PLAIN = {
    MobileFormer: PlainMobileFormer,
    ours.MobileFormerBlock: PlainBlock,
    ours.DyReLU: PlainDyReLU,
    ours.LocalToGlobal: PlainLocalToGlobal,
    ours.TokenBlock: PlainTokenBlock,
    ours.GlobalToLocal: PlainGlobalToLocal,
}
# Parts that hold no other part of this list; what is left of a model is additions, shuffles and views.
PARTS = {
    'stem': lambda name, module: name == 'stem',
    'local_to_global': lambda name, module: isinstance(module, ours.LocalToGlobal),
    'token block': lambda name, module: isinstance(module, ours.TokenBlock),
    'mobile: 1x1 convolutions': lambda name, module: _is_conv(name, module) and module.kernel_size == (1, 1),
    'mobile: 3x3 convolutions': lambda name, module: _is_conv(name, module) and module.kernel_size == (3, 3),
    'mobile: BN': lambda name, module: isinstance(module, nn.BatchNorm2d) and not name.startswith('stem'),
    'mobile: DyReLU': lambda name, module: isinstance(module, ours.DyReLU),
    'global_to_local': lambda name, module: isinstance(module, ours.GlobalToLocal),
}


def _is_conv(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and not name.startswith('stem')


def transcribe(model: MobileFormer, arch: str) -> MobileFormer:
    """The same layout and weights, every part computed plainly."""
    plain = MobileFormer(arch, out_tokens=True)
    plain.load_state_dict(model.state_dict())
    for module in plain.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return plain


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """The time of one call, to the end of its work on the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return perf_counter() - start


def training_step(module: nn.Module, inputs: tuple[Tensor, ...], autocast: dict) -> Callable[[], None]:
    """Forward and backward of a module, gradients of its weights and inputs."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        for tensor in inputs:
            tensor.grad = None
        with torch.autocast(**autocast):
            outs = module(*inputs)
        outs = [out for out in (outs if isinstance(outs, tuple) else (outs,)) if out.requires_grad]
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])

    return step


def part_steps(model: MobileFormer, image: Tensor, autocast: dict) -> dict[str, list[Callable[[], None]]]:
    """A training step of every module of every part, on the inputs that it has in the model."""
    steps: dict[str, list] = {part: [] for part in PARTS}
    handles = []
    for name, module in model.named_modules():
        for part, belongs in PARTS.items():
            if belongs(name, module):

                def record(module: nn.Module, inputs: tuple, output: object, part: str = part) -> None:
                    copies = tuple(tensor.detach().clone() for tensor in inputs)
                    leaves = tuple(copy.requires_grad_(part != 'stem') for copy in copies)
                    steps[part].append(training_step(module, leaves, autocast))

                handles.append(module.register_forward_hook(record))
    with torch.no_grad(), torch.autocast(**autocast):
        model(image)
    for handle in handles:
        handle.remove()
    return steps


def compare(pairs: dict[str, tuple[list, list]], rounds: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """The median seconds of (plain, ours) for each name, by alternating rounds."""
    times: dict[str, tuple[list, list]] = {name: ([], []) for name in pairs}
    for _ in range(rounds + 1):
        for name, pair in pairs.items():
            for steps, record in zip(pair, times[name], strict=True):
                record.append(sum(seconds(step, device) for step in steps))
    return {name: (median(plain[1:]), median(own[1:])) for name, (plain, own) in times.items()}  # the first warms up


def main(argv: list[str] | None = None) -> None:
    """Print the table for the settings named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='294m', choices=ARCH_SETTINGS)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--size', type=int, default=112, help='pixels a side')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--device', default='cpu', type=torch.device)
    parser.add_argument('--threads', type=int, help='CPU threads')
    parser.add_argument('--bf16', action='store_true', help='autocast to bfloat16')
    parser.add_argument('--no-parts', action='store_true', help='the whole step alone')
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device
    processor = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor()
    print(f'{processor or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}')
    print(f'{args.arch}, batch {args.batch_size}, {args.size} px, {"bf16" if args.bf16 else "fp32"}, train mode')

    torch.manual_seed(0)
    autocast = dict(device_type=device.type, dtype=torch.bfloat16, enabled=args.bf16)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        image = torch.randn(args.batch_size, 3, args.size, args.size, device=device)
        image = image.contiguous(memory_format=memory_format)
        own = MobileFormer(args.arch, out_tokens=True)
        models = [model.to(device, memory_format=memory_format) for model in (transcribe(own, args.arch), own)]
        with torch.no_grad():
            for plain_out, out in zip(*(model(image) for model in models), strict=True):
                torch.testing.assert_close(out, plain_out, rtol=1e-3, atol=1e-3)
        pairs = {'whole step': tuple([training_step(model, (image,), autocast)] for model in models)}
        if not args.no_parts:
            plain_parts, parts = (part_steps(model, image, autocast) for model in models)
            pairs |= {part: (plain_parts[part], parts[part]) for part in PARTS}
        title = f'{str(memory_format).removeprefix("torch.")} input'
        print(f'\n{title:<26} {"plain, ms":>10} {"ours, ms":>10} {"ratio":>6}')
        for name, (plain, ours_) in compare(pairs, args.rounds, device).items():
            note = f'   {args.batch_size / plain:.1f} -> {args.batch_size / ours_:.1f} images/s'
            line = f'{name:<26} {plain * 1e3:>10.1f} {ours_ * 1e3:>10.1f} {plain / ours_:>6.2f}'
            print(line + note * (name == 'whole step'), flush=True)


if __name__ == '__main__':
    main()
