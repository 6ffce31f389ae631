"""The site: Sphinx reads the Markdown files where they are, so its links are those that GitHub shows.

Pages that follow from metafiles, records of studies and docstrings are written to docs/generated on each build.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / 'docs' / 'generated'
sys.path.insert(0, str(ROOT))
from qbheat_mm.version import __version__  # noqa: E402

project, author, release = 'qbheat_mm', 'The qbheat_mm contributors', __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
root_doc = 'README'
include_patterns = ['*.md', 'docs/**.md', 'configs/*/README.md', 'results/*/README.md', 'studies/README.md']
include_patterns += ['tools/benchmarks/README.md', 'weights/README.md']
exclude_patterns = ['.*/**']
myst_heading_anchors = 4
myst_enable_extensions = ['dollarmath']
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_member_order = 'bysource'
napoleon_use_rtype = False
html_theme, html_math_renderer = 'furo', 'mathml'
html_title = f'qbheat_mm {release}'
html_show_copyright = html_show_sourcelink = False

NAVIGATION = {
    'Guide': ('docs/start', 'docs/method', 'docs/configs', 'docs/own_data', 'docs/transfer')
    + ('docs/choosing', 'docs/outside_openmmlab', 'docs/latency', 'docs/reproduce', 'docs/troubleshooting'),
    'Configs': ('docs/generated/models', 'configs/qbheat/README', 'configs/mocov2/README')
    + ('configs/mobile_former/README', 'configs/benchmarks/README', 'configs/detection/README', 'weights/README'),
    'Results': ('docs/generated/results', 'studies/README', 'tools/benchmarks/README'),
    'API': tuple(f'docs/generated/api/{name}' for name in ('apis', 'heat', 'models', 'datasets', 'engine'))
    + tuple(f'docs/generated/api/{name}' for name in ('evaluation', 'checkpoint', 'other')),
    'Project': ('docs/README', 'CONTRIBUTING', 'CODE_OF_CONDUCT', 'CHANGELOG'),
}


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    lines = [list(head), ['---'] * len(list(head)), *rows]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)


def toctree(pages: Iterable[str], *options: str) -> str:
    """A table of contents, in MyST."""
    return '\n'.join(['```{toctree}', *(f':{option}' for option in options), *(f'/{page}' for page in pages), '```\n'])


def models_page() -> str:
    """Every config that the metafiles name, with its result where it was measured."""
    text = '# Models\n\nFrom the metafiles, which `mim` and `mmpretrain.list_models` read.\n'
    for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        content = yaml.safe_load((ROOT / path).read_text())
        rows = []
        for model in content['Models']:
            metadata = model['Metadata']
            results = [
                f'{name} {value}' for each in model.get('Results', ()) for name, value in each['Metrics'].items()
            ]
            rows.append(
                [f'[{model["Name"]}](../../{model["Config"]})']
                + [metadata.get(key, '') for key in ('Training Data', 'Epochs', 'Batch Size')]
                + [', '.join(results), '[weights](../../weights/README.md)' if 'Weights' in model else '']
            )
        for collection in content['Collections']:
            text += f'\n## {collection["Name"]}\n\n[README](../../{collection["README"]})\n\n'
        text += table(('config', 'trained on', 'epochs', 'batch', 'result', ''), rows)
    return text


def results_page() -> str:
    """Every study with its records."""
    text = '# Results\n\nEvery figure comes from a record of a run. `studies/report.py` makes the reports of them.\n\n'
    rows, pages = [], []
    for path in sorted(ROOT.glob('results/*/runs.jsonl')):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        page = path.with_name('README.md')
        title = page.read_text().partition('\n')[0].lstrip('# ')
        hardware = ', '.join(sorted({record['hardware'] for record in records}))
        hours = sum(record['seconds'] for record in records) / 3600
        rows.append([f'[{title}](../../{page.relative_to(ROOT)})', len(records), f'{hours:.1f}', hardware])
        pages.append(str(page.relative_to(ROOT).with_suffix('')))
    return text + table(('study', 'runs', 'hours', 'hardware'), rows) + '\n' + toctree(pages, 'hidden:')


def api_page(title: str, modules: Iterable[Path]) -> str:
    """The docstrings of modules."""
    text = f'# {title}\n'
    for path in modules:
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        text += f'\n## {name.removeprefix(title).lstrip(".") or "Functions"}\n\n'
        text += f'```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :show-inheritance:\n```\n'
    return text


def api_pages() -> dict[str, str]:
    """A page for each folder of the package, and one for the modules beside them."""
    package = ROOT / 'qbheat_mm'
    pages = {}
    for name in ('apis', 'models', 'datasets', 'engine', 'evaluation', 'checkpoint'):
        modules = sorted(path for path in (package / name).rglob('*.py') if path.name != '__init__.py')
        pages[name] = api_page(f'qbheat_mm.{name}', modules)
    pages['heat'] = api_page('qbheat_mm.heat', [package / 'heat.py'])
    others = sorted(path for path in package.glob('*.py') if path.name not in ('__init__.py', 'heat.py', 'version.py'))
    pages['other'] = api_page('Other modules', others)
    return pages


def generate(app: Sphinx) -> None:
    """Write the pages that follow from other files."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    (GENERATED / 'api').mkdir(parents=True)
    pages = {'models': models_page(), 'results': results_page()}
    for name, text in (pages | {f'api/{name}': text for name, text in api_pages().items()}).items():
        (GENERATED / f'{name}.md').write_text(text)


def adapt(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the navigation to the first page, and take links to folders out, which a site does not have."""
    folder = (ROOT / name).parent

    def link(match: re.Match) -> str:
        return match[1] if (folder / match[2]).is_dir() else match[0]

    source[0] = re.sub(r'(?<!!)\[([^\]]+)\]\(([^)\s#:]+)\)', link, source[0])
    if name == root_doc:
        trees = [toctree(pages, 'hidden:', f'caption: {caption}') for caption, pages in NAVIGATION.items()]
        source[0] += '\n' + '\n'.join(trees)


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """The first page under the name that servers look for."""
    if exception is None:
        shutil.copy(Path(app.outdir) / f'{root_doc}.html', Path(app.outdir) / 'index.html')


def write_math(translator, node: nodes.math | nodes.math_block) -> None:
    """As MathML, which browsers show without a script from elsewhere."""
    block = isinstance(node, nodes.math_block)
    math = tex2mathml(node.astext(), as_block=block)
    translator.body.append(math.replace('<math', '<math style="padding: 0.3em 0"', 1) if block else math)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.add_html_math_renderer('mathml', (write_math, None), (write_math, None))
    app.connect('builder-inited', generate)
    app.connect('source-read', adapt)
    app.connect('build-finished', add_index)
