import json

import pytest
import torch
from helpers.runs import build_runner

from qbheat_mm.checkpoint import read_checkpoint

LOAD = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]


def labeled(folder) -> dict:
    return dict(type='ImageFolderDataset', data_root=str(folder), test_mode=True, pipeline=LOAD)


def knn(bank, queries, **kwargs) -> dict:
    return dict(
        type='KnnHook', bank=labeled(bank), queries=labeled(queries), ks=(1, 3), num_workers=0, interval=2, **kwargs
    )


def run(probe_data, name, hooks):
    runner = build_runner(
        probe_data / name,
        probe_data / 'train',
        train_cfg=dict(by_epoch=True, max_epochs=3),
        custom_hooks=hooks,
    )
    runner.train()
    return runner


def test_the_curve_starts_before_training_and_training_is_bit_identical_to_that_without(probe_data):
    runner = run(probe_data, 'with', [knn(probe_data / 'train', probe_data / 'val')])
    records = [json.loads(line) for line in next((probe_data / 'with').glob('*/vis_data/scalars.json')).open()]
    curve = [(each['step'], each['knn/top1_k1'], each['knn/top1_k3']) for each in records if 'knn/top1_k1' in each]
    assert [step for step, *_ in curve] == [0, 4]  # iterations
    assert all(0 <= value <= 100 for _, *values in curve for value in values)
    assert runner.model.training
    scalars = read_checkpoint(probe_data / 'with' / 'epoch_3.pth')['message_hub']['log_scalars']
    assert scalars['knn/top1_k1']['log_history'] == [value for _, value, _ in curve]

    without = run(probe_data, 'without', [])
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name]), name


def test_images_that_are_their_own_neighbors_are_all_classified(probe_data):
    runner = run(probe_data, 'self', [knn(probe_data / 'train', probe_data / 'train')])
    assert runner.message_hub.get_scalar('knn/top1_k1').current() == 100


def test_different_classes_are_refused_before_training(probe_data):
    (probe_data / 'val' / 'dog').rename(probe_data / 'val' / 'fox')
    with pytest.raises(ValueError, match=r'train lacks fox; val lacks dog'):
        run(probe_data, 'classes', [knn(probe_data / 'train', probe_data / 'val')])
