"""The package is layered: a module imports from its own layer and from those below it."""

import ast

import pytest
from helpers.models import ROOT

# From top to bottom. Modules at the package's top level that are not named here import nothing of the package.
LAYERS = ('apis', 'engine', 'evaluation', 'models', 'datasets', 'checkpoint', 'heat')
PACKAGE = ROOT / 'qbheat_mm'


def imported(source: str, package: list[str]) -> set[str]:
    """The parts of qbheat_mm that a module's text imports, ``package`` being the parts of its own package's name."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split('.') for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split('.') if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        parts |= {name[1] for name in names if name[0] == 'qbheat_mm' and len(name) > 1}
    return parts


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_upwards(path):
    package = ['qbheat_mm', *path.relative_to(PACKAGE).parts[:-1]]
    own = package[1] if len(package) > 1 else path.stem
    if own == '__init__':
        return  # the package itself imports all of it
    found = imported(path.read_text(), package) & set(LAYERS)
    if own in LAYERS:
        found -= set(LAYERS[LAYERS.index(own) :])
    assert not found, f'{path.name} of {own} imports {found}'


def test_imports_are_found():
    text = 'import qbheat_mm.apis\nfrom qbheat_mm.heat import A\nfrom ...models import B\nfrom .. import hooks'
    assert imported(text, ['qbheat_mm', 'engine', 'hooks']) == {'apis', 'heat', 'models', 'engine'}
