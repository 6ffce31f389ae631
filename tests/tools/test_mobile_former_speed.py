import pytest
import torch
from helpers.models import load_script

from qbheat_mm.models import MobileFormer

benchmark = load_script('tools/benchmarks/mobile_former_speed.py')


@pytest.mark.parametrize('arch', ['26m', '294m'])
def test_the_transcription_computes_the_same(arch):
    torch.manual_seed(0)
    model = MobileFormer(arch, out_tokens=True)
    plain = benchmark.transcribe(model, arch)
    image = torch.randn(2, 3, 64, 96)
    for out, expected in zip(model(image), plain(image), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
    assert type(model) is MobileFormer
    assert {type(module) for module in plain.modules()}.isdisjoint({MobileFormer, benchmark.ours.DyReLU})


def test_every_part_is_in_the_table(capsys):
    benchmark.main(['--arch', '26m', '--batch-size', '2', '--size', '64', '--rounds', '1'])
    lines = capsys.readouterr().out.splitlines()
    for part in ('whole step', *benchmark.PARTS):
        rows = [line for line in lines if line.startswith(part)]
        assert len(rows) == 2, part
        assert all(float(row[len(part) :].split()[0]) > 0 for row in rows)
