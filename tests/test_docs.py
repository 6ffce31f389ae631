"""The documentation: its links lead somewhere, and every command in it runs or says what it needs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.models import ROOT
from PIL import Image

import qbheat_mm

PAGES = sorted((ROOT / 'docs').glob('*.md'))
MARKDOWN = [ROOT / 'README.md', *PAGES, ROOT / 'studies' / 'README.md', *sorted((ROOT / 'configs').glob('*/README.md'))]
# What tools/train.py gets besides, so that a command of hours takes seconds.
LITTLE = 'train_cfg.max_epochs=6 train_dataloader.batch_size=4 train_dataloader.num_workers=0'
SHIM = f"""#!{sys.executable}
import os, sys
arguments = sys.argv[1:]
if arguments[0] == 'tools/train.py':
    arguments += ([] if '--cfg-options' in arguments else ['--cfg-options']) + '{LITTLE}'.split()
    if '--cfg-options' in sys.argv:  # what follows it belongs to it
        at = arguments.index('--cfg-options')
        rest = [each for each in arguments[at + 1 :] if each.startswith('--')]
        assert not rest, rest
os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
"""


def commands(page: Path) -> list[tuple[str, str]]:
    """The page's shell blocks: what each needs, '' where it runs anywhere, and its text."""
    return re.findall(r'^```bash ?([^\n]*)\n(.*?)^```', page.read_text(), re.M | re.S)


def heading_anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
    return {
        re.sub(r'[^\w\- ]', '', re.sub(r'`', '', heading)).strip().lower().replace(' ', '-') for heading in headings
    }


@pytest.mark.parametrize('page', MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if target.startswith(('http', 'mailto')):
            continue
        name, _, anchor = target.partition('#')
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f'{page.name} links to {target}'
        if anchor:
            assert anchor in heading_anchors(path), f'{page.name} links to {target}'


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == qbheat_mm.__version__
    assert '2211.13228' in citation['references'][0]['url']


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory):
    """The project's tracked files, with images and annotations as the pages name them."""
    folder = tmp_path_factory.mktemp('project')
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(ROOT / name)
    for split in ('photos/cat', 'photos/dog', 'voc/JPEGImages', 'yolo/images'):
        for i in range(10):
            path = folder / split / f'{i}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((160, 140), 80).convert('RGB').save(path)
            if split.startswith('voc'):
                xml = folder / 'voc/Annotations' / f'{i}.xml'
                xml.parent.mkdir(exist_ok=True)
                box = '<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>70</ymax></bndbox>'
                xml.write_text(
                    f'<annotation><filename>{i}.jpg</filename><size><width>160</width><height>140</height></size>'
                    f'<object><name>dog</name>{box}</object></annotation>'
                )
            if split.startswith('yolo'):
                label = folder / 'yolo/labels' / f'{i}.txt'
                label.parent.mkdir(exist_ok=True)
                label.write_text('1 0.5 0.5 0.4 0.4\n')
    shim = folder / 'bin' / 'python'
    shim.parent.mkdir()
    shim.write_text(SHIM)
    shim.chmod(0o755)
    return folder


@pytest.mark.slow
def test_commands_run(sandbox):
    """Page by page in the order of the index, each in one shell, with schedules cut short."""
    path = f'{sandbox / "bin"}:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    for name in re.findall(r'\]\((\w+\.md)\)', (ROOT / 'docs' / 'README.md').read_text()):
        script = 'set -e\n' + ''.join(text for needs, text in commands(ROOT / 'docs' / name) if not needs)
        done = subprocess.run(
            ['bash', '-c', script],
            cwd=sandbox,
            env=dict(os.environ, PATH=path, PYTHONPATH=str(sandbox)),
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert not done.returncode, f'{name}:\n{(done.stdout + done.stderr)[-4000:]}'


def test_the_index_names_every_page():
    index = (ROOT / 'docs' / 'README.md').read_text()
    assert {f'({page.name})' for page in PAGES} - {'(README.md)'} == set(re.findall(r'\(\w+\.md\)', index))


def test_messages_are_those_of_the_sources():
    """What the page on troubleshooting quotes of ours is said somewhere."""
    ours = [*(ROOT / 'qbheat_mm').rglob('*.py'), *(ROOT / 'tools').rglob('*.py'), *(ROOT / 'tools').glob('*.sh')]
    text = ''.join(path.read_text() for path in ours)
    text = re.sub(r"'\n\s*f?'", '', text).replace("\\'", "'")  # strings that go on in the next line
    theirs = ('libGL', 'mmcv._ext', 'torchvision::nms', 'pkg_resources', 'registry', 'OneDL', 'out of range')
    rows = re.findall(r'^\| `([^`]+)` \|', (ROOT / 'docs' / 'troubleshooting.md').read_text(), re.M)
    assert len(rows) > 20
    missing = [row for row in rows if row not in text and not any(word in row for word in theirs)]
    assert not missing
