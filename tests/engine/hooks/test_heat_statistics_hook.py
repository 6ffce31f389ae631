import json

import numpy as np
import pytest
import torch
from helpers.models import qbheat_config, write_images
from helpers.runs import build_runner

from qbheat_mm.engine.hooks.heat_statistics_hook import heat_statistics
from qbheat_mm.models import HeatNeck

NECKS = [
    dict(),
    dict(scheme='exp', commute='penalty'),
    dict(direction='separate'),
    dict(commute='shared_basis'),
    dict(direction='separate', commute='shared_basis'),
]


def compute_directly(neck: HeatNeck) -> dict[str, float]:
    """Each matrix by itself, in NumPy; the largest counts."""
    a, b = (each.detach().double().numpy() for each in neck.generators())
    values = {}
    for name, matrices in (('a', a), ('b', b)):
        values[f'heat/norm_{name}'] = max(np.sqrt((matrix**2).sum()) for matrix in matrices)
        values[f'heat/radius_{name}'] = max(np.abs(np.linalg.eigvals(matrix)).max() for matrix in matrices)
    values['heat/commutator'] = max(
        np.linalg.norm(one @ other - other @ one) / np.linalg.norm(one @ other) for one in a for other in b
    )
    return values


@pytest.mark.parametrize('options', NECKS, ids=str)
def test_statistics_equal_a_direct_computation(options):
    torch.manual_seed(0)
    neck = HeatNeck(7, **options)
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    statistics = heat_statistics(neck)
    assert statistics == pytest.approx(compute_directly(neck), rel=1e-6, abs=1e-6)
    commutes = options.get('commute') == 'shared_basis'
    assert (statistics['heat/commutator'] < 1e-5) == commutes
    assert statistics['heat/radius_a'] <= statistics['heat/norm_a']


def test_generators_that_are_still_zero_have_a_commutator_of_zero():
    assert set(heat_statistics(HeatNeck(4)).values()) == {0.0}


@pytest.mark.parametrize('options', [dict(scheme='none'), *NECKS], ids=str)
def test_a_run_logs_the_generators_it_ends_with(options, tmp_path):
    write_images(tmp_path / 'images', 8)
    model = qbheat_config()
    model['neck'].update(options)
    runner = build_runner(
        tmp_path / 'run',
        tmp_path / 'images',
        model=model,
        custom_hooks=[dict(type='HeatStatisticsHook')],
    )
    runner.train()
    (scalars,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    records = [record for record in map(json.loads, scalars.read_text().splitlines()) if 'heat/norm_a' in record]
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    if options.get('scheme') == 'none':
        assert not records
        assert 'heat/' not in log
        return
    (record,) = records
    expected = compute_directly(runner.model.neck)
    assert {key: record[key] for key in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert record['step'] == runner.iter == 2
    assert expected['heat/norm_a'] > 0
    assert f'Epoch(heat) [1] heat/norm_a: {expected["heat/norm_a"]:.4g}' in log
