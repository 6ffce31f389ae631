import json

import pytest
import torch
from helpers.models import TINY_ARCH, build_qbheat, write_images

CONFIG = """
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[60.0] * 3, to_rgb=True),
    backbone=dict(type='MobileFormer', arch={arch}, output_stride=16, frozen_stages=4,
                  init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=20))
load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(
    type='ImageFolderDataset', data_root={root!r}, data_prefix='train',
    pipeline=[load, dict(type='RandomResizedCrop', scale=64), dict(type='PackInputs')]))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageFolderDataset', data_root={root!r}, data_prefix='val', test_mode=True,
                 pipeline=[load, dict(type='PackInputs')]))
"""


@pytest.fixture
def project(tmp_path):
    for i, name in enumerate(('cat', 'dog')):
        write_images(tmp_path / 'train' / name, 4, seed=i)
        write_images(tmp_path / 'val' / name, 4, seed=i)  # the same images: their own nearest neighbors
    (tmp_path / 'config.py').write_text(CONFIG.format(arch=TINY_ARCH, root=str(tmp_path)))
    torch.save(dict(state_dict=build_qbheat().state_dict()), tmp_path / 'qbheat.pth')
    return tmp_path


@pytest.mark.parametrize('checkpoint', ['qbheat.pth', 'random'])
def test_neighbors_are_seen_without_augmentation(project, load_tool, checkpoint, capsys):
    path = str(project / checkpoint) if checkpoint != 'random' else checkpoint
    load_tool('analysis_tools/knn_eval.py').main(
        [str(project / 'config.py'), path, '--k', '1', '--device', 'cpu', '--out', str(project / 'knn.json')]
    )
    assert json.loads((project / 'knn.json').read_text())['knn/top1_k1'] == 100
    assert '8 images as neighbors, 8 classified, 20 channels' in capsys.readouterr().out


def test_what_is_wrong_is_one_line(project, load_tool):
    knn = load_tool('analysis_tools/knn_eval.py').main
    config = str(project / 'config.py')
    with pytest.raises(SystemExit, match=r'knn: There is no checkpoint at'):
        knn([config, str(project / 'none.pth'), '--device', 'cpu'])
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), project / 'resnet.pth')
    with pytest.raises(SystemExit, match=r'knn: .*resnet\.pth" does not fit MobileFormer'):
        knn([config, str(project / 'resnet.pth'), '--device', 'cpu'])
    with pytest.raises(SystemExit, match=r'knn: k-NN with k=200 needs'):
        knn([config, str(project / 'qbheat.pth'), '--device', 'cpu'])
    (project / 'val' / 'dog').rename(project / 'val' / 'fox')
    with pytest.raises(SystemExit, match=r'train lacks fox; val lacks dog'):
        knn([config, str(project / 'qbheat.pth'), '--device', 'cpu'])
