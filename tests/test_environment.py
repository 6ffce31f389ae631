"""Environment variables reach configs as they are."""

import pytest
from helpers.models import ROOT
from mmengine.config import Config

from qbheat_mm.environment import read_env

CONFIGS = sorted(path for path in ROOT.glob('configs/**/*.py') if 'read_env(' in path.read_text())
NAMES = ["../Anna's photos", 'a "b" c', 'back\\slash\\', '{x}', '\\1\\A', 'ü ß', "'''", '"""', '#', '%s']


def roots(node) -> list[str]:
    """All strings of a config."""
    if isinstance(node, dict):
        return [each for child in node.values() for each in roots(child)]
    if isinstance(node, (list, tuple)):
        return [each for child in node for each in roots(child)]
    return [node] if isinstance(node, str) else []


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_any_folder_can_be_named(path, monkeypatch, make_coco):
    if path.stem == 'coco_custom':
        pytest.skip('reads the annotations of the folder')
    for name in NAMES:
        monkeypatch.setenv('DATA_ROOT', name)
        cfg = Config.fromfile(path)
        assert any(each.startswith(name) for each in roots(cfg.to_dict()))
        assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()  # as the work dir keeps it


def test_no_config_has_mmengine_substitute_text():
    assert not [path for path in ROOT.glob('configs/**/*.py') if '{{' in path.read_text()]


def test_a_number_of_classes_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv('NUM_CLASSES', "3's")
    with pytest.raises(ValueError, match=r'The environment variable NUM_CLASSES="3\'s" is not a whole number'):
        Config.fromfile(ROOT / 'configs/_base_/datasets/imagenette_bs128_probe.py')
    monkeypatch.setenv('NUM_CLASSES', '3')
    assert Config.fromfile(ROOT / 'configs/_base_/datasets/imagenette_bs128_probe.py').num_classes == 3
    monkeypatch.setenv('NUM_CLASSES', '')
    assert read_env('NUM_CLASSES', 10) == 10


def test_the_home_folder_is_found_in_quotes(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('DATA_ROOT', '~/photos')
    assert read_env('DATA_ROOT', 'data') == f'{tmp_path}/photos'
    monkeypatch.setenv('DATA_ROOT', 'a~b')
    assert read_env('DATA_ROOT', 'data') == 'a~b'
