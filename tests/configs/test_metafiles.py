"""The metafiles and READMEs name exactly the configs that exist; mmpretrain lists and builds the models."""

import mmpretrain
import pytest
import torch
import yaml
from helpers.models import ROOT, load_script
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from qbheat_mm.apis import model_index

FILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
ENTRIES = {file: yaml.safe_load((ROOT / file).read_text()) for file in FILES}
SUPERVISED = [entry for entry in ENTRIES['configs/mobile_former/metafile.yml']['Models'] if 'in1k' in entry['Name']]


@pytest.mark.parametrize('file', FILES)
def test_metafile_and_readme_name_every_config_and_no_other(file):
    collections = {each['Name'] for each in ENTRIES[file]['Collections']}
    configs = set()
    for model in ENTRIES[file]['Models']:
        assert (ROOT / model['Config']).stem == model['Name']
        assert model['In Collection'] in collections
        configs.add(ROOT / model['Config'])
    folder = (ROOT / file).parent
    present = {path for path in folder.glob('*.py') if not path.stem.endswith('_folder') and '-knn_' not in path.stem}
    assert configs == present
    readme = (folder / 'README.md').read_text()
    assert [path.name for path in present if f'({path.name})' not in readme] == []


def test_modelindex_reads_them():
    """The package with which `mim` and Papers with Code read them."""
    modelindex = pytest.importorskip('modelindex.load_model_index')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    listed = {model['Name'] for content in ENTRIES.values() for model in content['Models']}
    assert {model.name for model in index.models} == listed
    for model in index.models:
        assert (ROOT / model.config).is_file()
        assert model.full_model.paper['URL'].startswith('https://arxiv.org/abs/')


@pytest.mark.parametrize('entry', SUPERVISED, ids=lambda entry: entry['Name'])
def test_parameters_and_flops_are_those_of_the_model_the_readme_and_the_converter(entry):
    converter = load_script('tools/model_converters/mobile_former_to_qbheat_mm.py')
    get_flops = load_script('tools/analysis_tools/get_flops.py')
    cfg = Config.fromfile(ROOT / entry['Config'])
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        model = MODELS.build(cfg.model)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if (size := cfg.model.backbone.arch) in converter.CLASSIFIER_WIDTHS:
        assert own == dict(converter.layout(size).values())
    parameters, flops = entry['Metadata']['Parameters'], entry['Metadata']['FLOPs']
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
    assert flops == get_flops.report(get_flops.build_model(cfg), (224, 224))['total'][1]
    readme = (ROOT / 'configs/mobile_former/README.md').read_text()
    (row,) = [line for line in readme.splitlines() if f'({entry["Name"]}.py) |' in line]
    assert f' {parameters / 1e6:.2f} ' in row
    assert f' {flops / 1e6:.1f} ' in row


def test_mmpretrain_lists_the_models_that_it_can_build():
    names = {file: {model['Name'] for model in content['Models']} for file, content in ENTRIES.items()}
    detection = names.pop('configs/detection/metafile.yml')
    listed = set(mmpretrain.list_models())
    assert set(names) == {f'configs/{folder}/metafile.yml' for folder in model_index.FOLDERS}
    assert set.union(*names.values()) <= listed
    assert not detection & listed
    assert set(mmpretrain.list_models('*qbheat*')) == names['configs/qbheat/metafile.yml']
    assert type(mmpretrain.get_model('qbheat_mobile-former-52m_1xb128-coslr-12e_imagenette')).__name__ == 'QBHeat'


def test_without_metafiles_nothing_is_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(model_index, 'ROOT', tmp_path)
    monkeypatch.setattr(model_index.ModelHub, 'register_model_index', lambda *_, **__: pytest.fail('registered'))
    model_index.register_models.__wrapped__()
