import json

import pytest


def test_every_option_is_timed_and_written(load_tool, tmp_path, capsys):
    tool = load_tool('benchmarks/heat_neck_share.py')
    out = tmp_path / 'share.json'
    tool.main(f'--arch 52m --batch-size 2 --size 64 --rounds 1 --out {out}'.split())
    figures = json.loads(out.read_text())
    assert figures['batch_size'] == 2
    assert len(figures['necks']) == 19
    assert all(0 < row['share'] < 1 for row in figures['necks'])
    assert capsys.readouterr().out.count('shared_basis') == 6


@pytest.mark.parametrize('option', [('exp', 'separate', 'penalty'), ('none', 'signed', 'none')])
def test_a_timed_step_of_the_neck_is_a_whole_one(load_tool, option):
    tool = load_tool('benchmarks/heat_neck_share.py')
    neck = tool.HeatNeck(4, *option)
    for parameter in neck.parameters():
        tool.nn.init.normal_(parameter, std=0.1)
    before = [parameter.detach().clone() for parameter in neck.parameters()]
    visible = tool.torch.randn(4, 4, 2, 2)
    origin = tool.torch.tensor([(0, 0), (0, 2), (2, 0), (2, 2)])
    tool.neck_step(neck, visible, origin, dict(device_type='cpu', enabled=False))()
    assert len(before) == (0 if option[0] == 'none' else 2)
    assert all(not tool.torch.equal(old, new) for old, new in zip(before, neck.parameters()))
