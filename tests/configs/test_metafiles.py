"""model-index.yml, the metafiles and the READMEs name what is there, and all of it."""

import re

import pytest
import yaml
from helpers.models import ROOT

FILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']


@pytest.mark.parametrize('file', FILES)
def test_metafile_and_readme_name_every_config_and_no_other(file):
    content = yaml.safe_load((ROOT / file).read_text())
    collections = {each['Name'] for each in content['Collections']}
    configs = set()
    for model in content['Models']:
        assert (ROOT / model['Config']).stem == model['Name']
        assert model['In Collection'] in collections
        configs.add(ROOT / model['Config'])
    folder = (ROOT / file).parent
    present = {path for path in folder.rglob('*.py') if not path.stem.endswith('_folder') and '-knn_' not in path.stem}
    assert configs == present
    readme = (folder / 'README.md').read_text()
    for link in re.findall(r'\]\((?!https?:)([^)#]+)', readme):
        assert (folder / link).exists(), link
    assert all(f'({path.name})' in readme for path in present if path.parent == folder)


def test_modelindex_reads_them():
    """The package that `mim` and Papers with Code read them with."""
    modelindex = pytest.importorskip('modelindex.load_model_index')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    listed = {each['Name'] for file in FILES for each in yaml.safe_load((ROOT / file).read_text())['Models']}
    assert {model.name for model in index.models} == listed
    for model in index.models:
        assert (ROOT / model.config).is_file()
        assert model.full_model.paper['URL'].startswith('https://arxiv.org/abs/')
