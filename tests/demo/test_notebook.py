"""The notebook demo/qbheat.ipynb."""

import re

import pytest
from helpers.models import ROOT

nbformat = pytest.importorskip('nbformat')
SHORT = {'PRETRAIN_EPOCHS = 6': 'PRETRAIN_EPOCHS = 2', 'DETECTION_EPOCHS = 6': 'DETECTION_EPOCHS = 1'}


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / 'demo' / 'qbheat.ipynb', as_version=4)


def test_it_is_valid_and_has_no_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    nbclient = pytest.importorskip('nbclient')
    source = '\n'.join(cell.source for cell in notebook.cells)
    for long, short in (SHORT | {"ROOT / 'work_dirs' / 'notebook'": f'Path({str(tmp_path)!r})'}).items():
        assert long in source
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    nbclient.NotebookClient(notebook, timeout=1200, resources=dict(metadata=dict(path=str(ROOT / 'demo')))).execute()

    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    printed = ''.join(output.text for output in outputs if output.output_type == 'stream')
    images = [output for output in outputs if 'image/png' in output.get('data', {})]
    assert len(images) == 4  # photographs, reconstructions, neighbors, detections
    assert re.search(r'^Epoch\(val\) \[2\]', printed, re.M)  # not in colors, which Jupyter asks for
    assert '(96, 8, 8)' in printed
    assert 'neighbors are crops of the same photograph' in printed
    assert 'AP 0.' in printed
