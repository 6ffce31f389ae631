import hashlib
import json
from pathlib import Path

import pytest
import torch
from helpers.models import TINY_ARCH, build_qbheat
from mmengine.logging import HistoryBuffer
from mmpretrain.registry import MODELS
from safetensors import safe_open

from qbheat_mm.checkpoint import read_state_dict


@pytest.fixture
def tool(load_tool):
    return load_tool('model_converters/publish_model.py')


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """What a run of mmengine's leaves behind, log curves of its own class included."""
    meta = dict(epoch=3, iter=30, cfg='import os', config='import os', dataset_meta=dict(classes=('cat', 'dog')))
    content = dict(meta=meta, state_dict=build_qbheat().state_dict(), optimizer=dict(state=dict()))
    torch.save(dict(content, message_hub=dict(log_scalars=dict())), tmp_path / 'epoch_3.pth')
    raw = dict(content, message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))))
    torch.save(raw, tmp_path / 'raw.pth')
    return tmp_path / 'epoch_3.pth'


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_backbone_alone_loads_as_the_checkpoint_did(tool, checkpoint, tmp_path, suffix):
    path = tool.publish(str(checkpoint), tmp_path / f'backbone{suffix}')
    assert path.name == f'backbone-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}{suffix}'
    stored = read_state_dict(path)
    assert stored
    assert all(key.startswith('backbone.') for key in stored)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    backbone = MODELS.build(dict(type='MobileFormer', arch=TINY_ARCH, init_cfg=init_cfg))
    backbone.init_weights()
    original = read_state_dict(checkpoint)
    assert all(torch.equal(value, original['backbone.' + key]) for key, value in backbone.state_dict().items())
    assert not list(tmp_path.glob('.*'))


def test_metadata_are_plain_and_hold_no_config_text(tool, checkpoint, tmp_path):
    wanted = dict(epoch=3, iter=30, dataset_meta=dict(classes=['cat', 'dog']))
    content = torch.load(tool.publish(str(checkpoint), tmp_path / 'a.pth'), weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta'].pop('qbheat_mm_version')
    assert content['meta'] == wanted
    with safe_open(tool.publish(str(checkpoint), tmp_path / 'a.safetensors'), 'pt') as file:
        assert json.loads(file.metadata()['meta']).items() >= wanted.items()


def test_the_whole_model_and_half_precision(tool, checkpoint, tmp_path):
    original = read_state_dict(checkpoint)
    whole = read_state_dict(tool.publish(str(checkpoint), tmp_path / 'whole.pth', whole=True))
    assert whole.keys() == original.keys()
    half = read_state_dict(tool.publish(str(checkpoint), tmp_path / 'half.pth', half=True))
    for key, value in half.items():
        if original[key].is_floating_point():
            assert value.dtype == torch.float16
            torch.testing.assert_close(value.float(), original[key], rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(value, original[key])


@pytest.mark.parametrize(('value', 'reason'), [(1e6, r'1e\+06 does not fit float16'), (float('nan'), 'not finite')])
def test_what_cannot_be_published_is_named(tool, checkpoint, tmp_path, value, reason):
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['backbone.tokens'][0] = value
    torch.save(content, checkpoint)
    with pytest.raises(SystemExit, match=rf'backbone\.tokens of .*{reason}'):
        tool.main([str(checkpoint), str(tmp_path / 'out' / 'a.pth'), '--half'])
    assert not list((tmp_path).glob('out/*'))


def test_a_raw_file_is_published(tool, checkpoint, tmp_path, capsys):
    tool.main([str(tmp_path / 'raw.pth'), str(tmp_path / 'a.pth'), '--whole'])
    path = Path(capsys.readouterr().out.split(':')[0])
    assert torch.load(path, weights_only=True)['state_dict'].keys() == read_state_dict(checkpoint).keys()


def test_other_endings_and_files_without_a_backbone_are_refused(tool, checkpoint, tmp_path):
    with pytest.raises(SystemExit, match=r'must end in \.pth or \.safetensors'):
        tool.main([str(checkpoint), str(tmp_path / 'a.bin')])
    torch.save(dict(head=torch.ones(1)), tmp_path / 'head.pth')
    with pytest.raises(SystemExit, match=r'nothing under the prefix "backbone\."'):
        tool.main([str(tmp_path / 'head.pth'), str(tmp_path / 'a.pth')])
