import os

import pytest
import torch
from helpers.models import TINY_ARCH
from mmpretrain.registry import MODELS
from safetensors.torch import save_file

from qbheat_mm.checkpoint import CheckpointError, load_pretrained, read_state_dict


def build(**kwargs):
    return MODELS.build(dict(dict(type='MobileFormer', arch=TINY_ARCH), **kwargs))


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(1)
    backbone = build()
    state_dict = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    state_dict['head.fc.weight'] = torch.zeros(2)
    path = tmp_path / 'model.pth'
    torch.save(dict(meta=dict(epoch=1), state_dict=state_dict), path)
    return path


def pretrained(path, prefix='backbone.', **kwargs):
    backbone = build(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix), **kwargs)
    backbone.init_weights()
    return backbone


def test_init_cfg_loads_every_entry(checkpoint):
    own, stored = pretrained(checkpoint).state_dict(), read_state_dict(checkpoint)
    assert all(torch.equal(value, stored['backbone.' + key]) for key, value in own.items())


@pytest.mark.parametrize('options', [dict(out_tokens=True), dict(out_indices=(0, 1)), dict(output_stride=16)])
def test_one_checkpoint_fits_every_use_of_a_layout(checkpoint, options):
    pretrained(checkpoint, **options)


def test_wrong_prefix_stops_with_the_prefixes_of_the_file(checkpoint):
    with pytest.raises(CheckpointError, match=r'"encoder\.".*"backbone\." \(\d+ entries\), "head\." \(1 entries\)'):
        pretrained(checkpoint, prefix='encoder.')


def test_another_size_stops_with_the_names(checkpoint):
    with pytest.raises(CheckpointError, match='does not fit MobileFormer') as error:
        pretrained(checkpoint, arch='52m')
    assert all(word in str(error.value) for word in ('missing: ', 'stages.', 'of another shape: tokens (2, 16)'))


def test_unexpected_entry_stops_with_its_name(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['backbone.extra'] = torch.zeros(1)
    torch.save(content, tmp_path / 'extra.pth')
    with pytest.raises(CheckpointError, match='unexpected: extra'):
        pretrained(tmp_path / 'extra.pth')


def test_missing_checkpoint_names_the_field():
    with pytest.raises(CheckpointError, match=r'model\.backbone\.init_cfg\.checkpoint'):
        pretrained('')
    with pytest.raises(CheckpointError, match=r'no checkpoint at "nowhere\.pth"'):
        pretrained('nowhere.pth')


def test_nothing_in_a_checkpoint_is_executed(checkpoint, tmp_path):
    marker = tmp_path / 'executed'

    class Malicious:
        def __reduce__(self):
            return os.system, (f'touch {marker}',)

    content = torch.load(checkpoint, weights_only=True)
    torch.save(dict(content, extra=Malicious()), tmp_path / 'malicious.pth')
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        pretrained(tmp_path / 'malicious.pth')
    assert not marker.exists()
    torch.load(tmp_path / 'malicious.pth', weights_only=False)
    assert marker.exists()  # the file is what it is meant to be


@pytest.mark.parametrize('name', ['cut.pth', 'text.pth', 'text.safetensors', 'empty.pth'])
def test_damaged_files_are_named(checkpoint, tmp_path, name):
    content = {'cut': checkpoint.read_bytes()[:5000], 'text': b'hello', 'empty': b''}[name.split('.')[0]]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace('.', r'\.')):
        pretrained(tmp_path / name)


@pytest.mark.parametrize('name', ['model.pth', 'model.safetensors'])
@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n',
            'git-LFS, not the file itself; run `git lfs',
        ),
        (b'<!DOCTYPE html><html>', 'an HTML page'),
        (bytes(1000), 'it is empty, or holds zeros alone'),
    ],
)
def test_a_file_that_is_no_checkpoint_is_told_for_what_it_looks_like(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'{name}" is no checkpoint: .*{reason}'):
        read_state_dict(tmp_path / name)


def test_file_without_weights_is_named(tmp_path):
    torch.save(dict(epoch=1), tmp_path / 'meta.pth')
    with pytest.raises(CheckpointError, match='holds no weights; its fields are epoch'):
        read_state_dict(tmp_path / 'meta.pth')


def test_safetensors_and_data_parallel_names(checkpoint, tmp_path):
    state_dict = {f'module.{key}': value.contiguous() for key, value in read_state_dict(checkpoint).items()}
    save_file(state_dict, tmp_path / 'model.safetensors')
    pretrained(tmp_path / 'model.safetensors')


def test_load_pretrained_without_a_prefix_takes_the_whole_file(tmp_path):
    layer = torch.nn.Linear(2, 3)
    torch.save(layer.state_dict(), tmp_path / 'layer.pth')
    other = torch.nn.Linear(2, 3)
    load_pretrained(other, tmp_path / 'layer.pth')
    assert torch.equal(layer.weight, other.weight)
