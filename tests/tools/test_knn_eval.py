import json

import pytest
import torch
from helpers.probes import probe


@pytest.fixture
def config(probe_data) -> str:
    """Of a probe with augmentation."""
    probe(probe_data, 'linear').dump(probe_data / 'config.py')
    return str(probe_data / 'config.py')


@pytest.mark.parametrize('checkpoint', ['qbheat.pth', 'random'])
def test_neighbors_are_loaded_without_augmentation(config, probe_data, load_tool, checkpoint, capsys):
    path = str(probe_data / checkpoint) if checkpoint != 'random' else checkpoint
    load_tool('analysis_tools/knn_eval.py').main(
        [config, path, '--k', '1', '--device', 'cpu', '--out', str(probe_data / 'knn.json')]
        # the training images are their own nearest neighbors
        + ['--cfg-options', 'val_dataloader.dataset.data_prefix=train']
    )
    assert json.loads((probe_data / 'knn.json').read_text())['knn/top1_k1'] == 100
    assert '8 images as neighbors, 8 classified, 20 channels' in capsys.readouterr().out


def test_errors_are_one_line(config, probe_data, load_tool):
    knn = load_tool('analysis_tools/knn_eval.py').main
    with pytest.raises(SystemExit, match=r'knn: There is no checkpoint at'):
        knn([config, str(probe_data / 'none.pth'), '--device', 'cpu'])
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), probe_data / 'resnet.pth')
    with pytest.raises(SystemExit, match=r'knn: .*resnet\.pth" does not fit MobileFormer'):
        knn([config, str(probe_data / 'resnet.pth'), '--device', 'cpu'])
    with pytest.raises(SystemExit, match=r'knn: k-NN with k=200 needs'):
        knn([config, str(probe_data / 'qbheat.pth'), '--device', 'cpu'])
    (probe_data / 'val' / 'dog').rename(probe_data / 'val' / 'fox')
    with pytest.raises(SystemExit, match=r'train lacks fox; val lacks dog'):
        knn([config, str(probe_data / 'qbheat.pth'), '--device', 'cpu'])
