"""Time HeatNeck's share of a QB-Heat training step (forward, backward, optimizer), every option of it.

    python tools/benchmarks/heat_neck_share.py --batch-size 32 --threads 2
    python tools/benchmarks/heat_neck_share.py --batch-size 256 --device cuda --bf16

The neck is timed by itself on features of the model's shape, with the gradients of its matrices and of the features,
and AdamW's update; the rest of the step is the whole step without an equation (scheme='none') less the time of its
neck, which copies. A share is neck / (neck + rest). Rounds over all options alternate with whole steps, so that a busy
machine slows all alike; medians are shown. For comparison, one line times whole steps with the default neck directly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path

import _options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='285m', choices=_options.ARCHITECTURES)
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--size', type=int, default=224, help='side of the images in pixels')
    parser.add_argument('--bf16', action='store_true', help='autocast to bfloat16')
    return _options.parse_args(parser, argv, rounds=7)


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401  # before the packages that it patches

# isort: split
import torch
from _timing import Clock, median_rounds, setting, use_device, write_json
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from qbheat_mm.models import HeatNeck
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS
from qbheat_mm.models.utils import crop_quarter

BASE = Path(__file__).resolve().parents[2] / 'configs/_base_/models/qbheat_mobile-former-52m.py'
NONE = ('none', 'signed', 'none')
OPTIONS = [NONE, *product(('euler', 4, 'exp'), ('signed', 'separate'), ('none', 'penalty', 'shared_basis'))]
WHOLE = {'whole step, scheme=none': 'none', 'whole step, default': 'euler'}
Step = Callable[[], object]


def build_model(arch: str, scheme: str) -> nn.Module:
    """QB-Heat on a Mobile-Former at output stride 16, as configs/qbheat have it."""
    torch.manual_seed(0)
    config = Config.fromfile(BASE)
    channels = ARCH_SETTINGS[arch]['blocks'][-1][1]
    config.merge_from_dict(
        {
            'model.backbone.arch': arch,
            'model.neck': dict(in_channels=channels, scheme=scheme),
            'model.decoder.in_channels': channels,
        }
    )
    return MODELS.build(config.model)


def optimizer_step(module: nn.Module, forward_backward: Step) -> Step:
    """Forward, backward, and AdamW's update of a module."""
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-4) if parameters else None

    def step() -> None:
        forward_backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()

    return step


def whole_step(model: nn.Module, images: Tensor, origin: Tensor, autocast: dict) -> Step:
    """A training step of the model."""
    samples = [DataSample() for _ in images]
    for sample, corner in zip(samples, origin.tolist()):
        sample.set_field(tuple(corner), 'visible_origin', field_type='metainfo')

    def forward_backward() -> None:
        with torch.autocast(**autocast):
            loss = sum(model.loss(images, samples).values())
        loss.backward()

    return optimizer_step(model, forward_backward)


def neck_step(neck: HeatNeck, visible: Tensor, origin: Tensor, autocast: dict) -> Step:
    """A training step of the neck alone; the decoder's gradient is random numbers."""
    features = visible.clone().requires_grad_()
    gradient = torch.randn_like(neck(features, origin))

    def forward_backward() -> None:
        features.grad = None
        with torch.autocast(**autocast):
            whole, losses = neck(features, origin), list(neck.losses().values())
        torch.autograd.backward([whole, *losses], [gradient, *(torch.ones_like(loss) for loss in losses)])

    return optimizer_step(neck, forward_backward)


def build_steps(args: argparse.Namespace) -> dict:
    """Steps of whole models, and of every neck."""
    device = args.device
    autocast = dict(device_type=device.type, dtype=torch.bfloat16, enabled=args.bf16)
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=device)
    origin = torch.randint(2, (args.batch_size, 2), device=device) * (args.size // 32)
    models = {name: build_model(args.arch, scheme).to(device) for name, scheme in WHOLE.items()}
    steps: dict = {name: whole_step(model, images, origin, autocast) for name, model in models.items()}
    with torch.no_grad(), torch.autocast(**autocast):
        latent = next(iter(models.values())).encode(crop_quarter(images, origin, 16))
    for option in OPTIONS:
        neck = HeatNeck(latent.shape[1], *option).to(device)
        for parameter in neck.parameters():
            nn.init.normal_(parameter, std=0.02)
        steps[option] = neck_step(neck, latent, origin, autocast)
    return steps


def shares(times: dict) -> list[dict]:
    """One row an option: seconds of the neck, and its share of the step."""
    rest = times['whole step, scheme=none'] - times[NONE]
    return [
        dict(scheme=option[0], direction=option[1], commute=option[2], neck_s=times[option])
        | dict(share=times[option] / (rest + times[option]))
        for option in OPTIONS
    ]


def main(argv: list[str] | None = None) -> None:
    """Time, print the table, write JSON where it was asked for."""
    args = parse_args(argv)
    use_device(args)
    init_default_scope('mmpretrain')
    figures = setting(args, 'arch', 'batch_size', 'size', 'bf16')
    print(', '.join(f'{key} {value}' for key, value in figures.items()), flush=True)
    times = median_rounds(build_steps(args), args.rounds, Clock(args))
    rows = shares(times)
    print(f'\n{"scheme":<7} {"direction":<9} {"commute":<12} {"neck, ms":>9} {"share":>7}')
    for row in rows:
        option = f'{row["scheme"]:<7} {row["direction"]:<9} {row["commute"]:<12}'
        print(f'{option} {row["neck_s"] * 1e3:>9.2f} {row["share"]:>7.2%}')
    whole = {name: times[name] for name in WHOLE}
    print('\n' + '\n'.join(f'{name}: {each * 1e3:.1f} ms' for name, each in whole.items()))
    write_json(args.out, dict(figures, whole_step_s=whole, necks=rows))


if __name__ == '__main__':
    main()
