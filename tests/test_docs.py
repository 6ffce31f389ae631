"""The documentation: links, anchors, paths and options exist, and the commands of docs/ run."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.models import ROOT, load_script, write_images

import qbheat_mm


def git(*arguments: str) -> list[str]:
    return subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


TRACKED = [name for name in git('ls-files') if (ROOT / name).is_file()]
MARKDOWN = [name for name in TRACKED if name.endswith('.md') and name != 'CHANGELOG.md']
PAGES = sorted(Path(name).name for name in MARKDOWN if name.startswith('docs/'))

# Fields that tools/train.py gets in front of a command's own, so that hours become seconds.
SHORT = ['train_cfg.max_epochs=6', 'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0']
SHIM = f"""#!{sys.executable}
import os, sys
arguments = sys.argv[1:]
if arguments[0] == 'tools/train.py':
    arguments += [] if '--cfg-options' in arguments else ['--cfg-options']
    at = arguments.index('--cfg-options') + 1
    arguments[at:at] = {SHORT}
os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
"""
# Class names of 0.1.0.
OLD_NAMES = (
    'PixelHead|PixelDecoder|MultiRateHead|MultiRateAccuracy|MultiRateConstructor|TrainableParamsConstructor|'
    'FeatureInput|FolderDataset|FastRandomResizedCrop|CocoBoxMetric|SafeCheckpointHook|CheckpointGuardHook|DrawsHook|'
    'FiniteLossHook|CheckClassesHook|CheckDatasetHook|CheckQueueHook|ValidateFirstHook'
)


def commands(page: str) -> list[tuple[str, str]]:
    """The page's shell blocks: what each needs, '' where it runs anywhere, and its text."""
    return re.findall(r'^```bash ?([^\n]*)\n(.*?)^```', (ROOT / page).read_text(), re.M | re.S)


def heading_anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', heading).strip().lower().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', MARKDOWN)
def test_links_anchors_paths_and_options_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r'\]\((?!http)([^)\s]+)\)', text):
        name, _, anchor = target.partition('#')
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in heading_anchors(path), target
    folders = 'configs|demo|docs|qbheat_mm|requirements|studies|tests|tools|weights'
    for path, end in re.findall(rf'(?<![\w/.$-])((?:{folders})/[\w./-]*)([$*{{<]?)', text):
        known = path.rpartition('/')[0] if end or '...' in path else path.rstrip('.')
        assert (ROOT / known).exists() or path.endswith('/mine.py'), path
    for _, block in commands(page):
        for script, rest in re.findall(r'((?:tools|studies|demo)/\S+\.py)([^\n;|]*)', block.replace('\\\n', ' ')):
            # Options that tools share are added by a module beside them, or beside the package.
            shared = [ROOT / 'qbheat_mm_cli.py', *(ROOT / script).parent.glob('_*.py')]
            known = ''.join(path.read_text() for path in (ROOT / script, *shared)) + "'--help'"
            assert all(f"'{option}'" in known for option in re.findall(r' (--[a-z][\w-]*)', rest)), rest


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == qbheat_mm.__version__
    assert '2211.13228' in citation['references'][0]['url']


def test_the_index_names_every_page():
    index = re.findall(r'\((\w+\.md)\)', (ROOT / 'docs' / 'README.md').read_text())
    assert sorted([*index, 'README.md']) == PAGES


def test_only_the_changelog_has_the_vocabulary_of_0_1_0():
    others = ['--', '.', ':!CHANGELOG.md', ':!tests/test_docs.py', ':!tests/data']
    assert git('grep', '-Iil', 'picture', *others) == []
    assert git('grep', '-InwE', OLD_NAMES, *others) == []


def test_troubleshooting_quotes_messages_of_the_sources():
    ours = [name for name in TRACKED if re.match(r'(qbheat_mm|tools)/.*\.(py|sh)$', name)]
    text = ''.join((ROOT / name).read_text() for name in ours)
    text = re.sub(r"'\n\s*f?'", '', text).replace("\\'", "'")  # strings continued on the next line
    theirs = ('libGL', 'mmcv._ext', 'torchvision::nms', 'pkg_resources', 'registry', 'OneDL', 'out of range')
    rows = re.findall(r'^\| `([^`]+)` \|', (ROOT / 'docs' / 'troubleshooting.md').read_text(), re.M)
    assert len(rows) > 20
    assert [row for row in rows if row not in text and not any(word in row for word in theirs)] == []


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory) -> Path:
    """The project's tracked files, with images and annotations as the pages name them."""
    folder = tmp_path_factory.mktemp('project')
    for name in TRACKED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    for i, name in enumerate(('photos/cat', 'photos/dog', 'voc/JPEGImages', 'yolo/images')):
        images = write_images(folder / name, 10, size=160, seed=i)
    box = '<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>70</ymax></bndbox>'
    for labels in ('voc/Annotations', 'yolo/labels'):
        (folder / labels).mkdir()
    for path in images:
        (folder / 'yolo/labels' / f'{path.stem}.txt').write_text('1 0.5 0.5 0.4 0.4\n')
        (folder / 'voc/Annotations' / f'{path.stem}.xml').write_text(
            f'<annotation><filename>{path.name}</filename><size><width>160</width><height>160</height></size>'
            f'<object><name>dog</name>{box}</object></annotation>'
        )
    shim = folder / 'bin' / 'python'
    shim.parent.mkdir()
    shim.write_text(SHIM)
    shim.chmod(0o755)
    return folder


@pytest.mark.slow
def test_commands_run(sandbox):
    """Page by page in the order of the index, each in one shell, with schedules cut short."""
    path = f'{sandbox / "bin"}:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = dict(os.environ, PATH=path, PYTHONPATH=str(sandbox))
    for name in re.findall(r'\]\((\w+\.md)\)', (ROOT / 'docs' / 'README.md').read_text()):
        script = 'set -e\n' + ''.join(text for needs, text in commands(f'docs/{name}') if not needs)
        done = subprocess.run(
            ['bash', '-c', script], cwd=sandbox, env=env, capture_output=True, text=True, timeout=1200
        )
        assert not done.returncode, f'{name}:\n{(done.stdout + done.stderr)[-4000:]}'


def test_python_blocks_outside_openmmlab_run(sandbox):
    """One after the other, in one process."""
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / 'docs/outside_openmmlab.md').read_text(), re.M | re.S)
    assert len(blocks) == 6
    if importlib.util.find_spec('sklearn') is None:
        blocks = [block for block in blocks if 'sklearn' not in block]
    path = f'{sandbox}:{os.environ.get("PYTHONPATH", "")}'
    command = [sys.executable, '-c', ''.join(blocks)]
    done = subprocess.run(
        command, cwd=sandbox, env=dict(os.environ, PYTHONPATH=path), capture_output=True, text=True, timeout=600
    )
    assert not done.returncode, done.stderr[-4000:]
    printed = done.stdout.splitlines()
    assert printed[-1 - ('sklearn' in blocks[-1])].startswith("['000.jpg', ")


def test_the_site_names_every_config_study_and_module():
    pytest.importorskip('docutils')
    site = load_script('docs/conf.py')
    models, results, api = site.models_page(), site.results_page(), ''.join(site.api_pages().values())
    configs = [name for name in TRACKED if re.match(r'configs/(?!_base_|demo)\w+/[^/]+(?<!_folder)\.py$', name)]
    configs = [name for name in configs if '-knn_' not in name]  # in no metafile, as the folder's
    assert len(configs) > 80
    assert [name for name in configs if f'](../../{name})' not in models] == []
    studies = [name for name in TRACKED if re.match(r'results/\w+/runs\.jsonl$', name)]
    assert len(studies) > 3
    assert [name for name in studies if f'](../../{name.replace("runs.jsonl", "README.md")})' not in results] == []
    modules = [name for name in TRACKED if re.match(r'qbheat_mm/.*(?<!__init__)(?<!version)\.py$', name)]
    assert len(modules) > 50
    assert [name for name in modules if f'automodule:: {name[:-3].replace("/", ".")}\n' not in api] == []
