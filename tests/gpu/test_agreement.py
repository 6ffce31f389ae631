"""What the device computes is what a CPU computes in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from helpers.models import build_qbheat, samples_at
from torch import Tensor, nn

from qbheat_mm.models import HeatNeck, MobileFormer, Whitening
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS

SCHEMES = [
    ('none', 'signed', 'none'),
    *product(('euler', 4, 'exp'), ('signed', 'separate'), ('none', 'penalty', 'shared_basis')),
]
ORIGINS = [(0, 0), (0, 2), (1, 1), (2, 0)]


def error(found: Tensor, reference: Tensor) -> float:
    """||found - reference|| / ||reference||."""
    found, reference = found.detach().double().cpu(), reference.detach().double()
    return float((found - reference).norm() / reference.norm().clamp(min=1e-12))


def compare(module: nn.Module, forward: Callable, inputs: Tensor, device, precision: str, limit: float = 1e-4) -> None:
    """Compare outputs and gradients with those of the CPU in float32, or in float64.

    In bfloat16 they may differ from it by twice as much as the CPU's own in bfloat16.

    Args:
        module: On the CPU.
        forward: Of a module, inputs and a device: outputs, one tensor.
        inputs: On the CPU.
        device: The other device.
        precision: 'float64', compared with float64, 'float32' or 'bfloat16'.
        limit: Of the relative error of all gradients together in float32; that of outputs is 1e-4. Both are 1e-9 in
            float64.
    """
    cpu = torch.device('cpu')

    def run(place: torch.device, dtype: str) -> tuple[Tensor, Tensor]:
        kind = torch.float64 if dtype == 'float64' else torch.float32
        model, x = copy.deepcopy(module).to(place, kind), inputs.to(place, kind, copy=True).requires_grad_()
        with torch.autocast(place.type, torch.bfloat16, enabled=dtype == 'bfloat16'):
            out = forward(model, x, place)
        weights = torch.linspace(-1, 1, out.numel(), dtype=kind, device=place).view_as(out)
        (out.to(kind) * weights).sum().backward()
        gradients = [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
        return out, torch.cat([each.flatten().cpu().to(kind) for each in gradients])

    reference = run(cpu, 'float64' if precision == 'float64' else 'float32')
    found = list(map(error, run(device, precision), reference))
    limits = [1e-9, 1e-9] if precision == 'float64' else [1e-4, limit]
    if precision == 'bfloat16':
        rounding = map(error, run(cpu, 'bfloat16'), reference)
        limits = [max(least, 2 * each) for least, each in zip(limits, rounding)]
    print('relative errors of outputs and gradients, and their limits:', found, limits)
    assert all(each <= most for each, most in zip(found, limits)), (found, limits)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('options', SCHEMES, ids=str)
def test_heat_neck(options, precision, device):
    """The extrapolation itself is in float32 at any precision."""
    torch.manual_seed(0)
    neck = HeatNeck(24, *options)
    for parameter in neck.parameters():
        nn.init.normal_(parameter, std=0.1)

    def forward(module, x, place):
        out = module(x, torch.tensor(ORIGINS, device=place))
        assert out.dtype == torch.float32
        return torch.cat([out.flatten(), *(loss[None] for loss in module.losses().values())])

    compare(neck, forward, torch.randn(4, 24, 2, 2), device, precision)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('mixer', ['attention', 'local'])
def test_decoder_head_and_loss(mixer, precision, device):
    model = build_qbheat(decoder=dict(mixer=mixer)).eval()
    nn.init.normal_(model.neck.generator_x, std=0.1)

    def forward(module, x, place):
        loss = module.loss(x, samples_at(ORIGINS))['loss']
        assert loss.dtype == torch.float32
        return loss[None]

    compare(model, forward, torch.randn(4, 3, 64, 64), device, precision, limit=1e-3)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_whitening(precision, device):
    """In float32 at any precision."""
    torch.manual_seed(0)
    whitening = Whitening([8])
    features = torch.randn(64, 8, 3, 3) * torch.logspace(0, -2, 8).view(-1, 1, 1)
    rows = features.movedim(1, -1).flatten(0, -2)
    whitening.layers[0].set_statistics(rows.mean(0), rows.mT.cov())
    compare(whitening, lambda module, x, _: module((x,))[0], features, device, precision)


@pytest.mark.parametrize('precision', ['float64', 'float32', 'bfloat16'])
@pytest.mark.parametrize('arch', ARCH_SETTINGS)
def test_mobile_former(arch, precision, device):
    """Gradients jump where DyReLU's maximum changes sides: a CPU's in float32 differ by up to 2 % from float64's."""
    torch.manual_seed(0)
    model = MobileFormer(arch)
    model.init_weights()
    compare(model, lambda module, x, _: module(x)[-1], torch.randn(4, 3, 96, 96), device, precision, limit=0.05)


def test_a_wrong_result_is_found(device):
    calls = []

    def forward(module, x, place):
        calls.append(place)  # the first is the reference
        return module(x, torch.tensor(ORIGINS, device=place)) * (1 + 1e-3 * len(calls))

    with pytest.raises(AssertionError):
        compare(HeatNeck(4), forward, torch.randn(4, 4, 2, 2), device, 'float32')
