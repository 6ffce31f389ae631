"""Pre-training works on data whose labels cannot be read; probing does not."""

import pytest
from helpers.models import ROOT, TINY_ARCH, write_images
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from qbheat_mm.datasets import ImageFolderDataset


class LabelWasRead(Exception):
    pass


@pytest.fixture
def data(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise LabelWasRead

    for i, name in enumerate(('cat', 'dog')):
        write_images(tmp_path / 'train' / name, 4, seed=i)
    # Sorting images by class is where a folder's labels are read, set_gt_label where a sample gets one.
    monkeypatch.setattr('qbheat_mm.datasets.image_folder.find_classes', refuse)
    monkeypatch.setattr(DataSample, 'set_gt_label', refuse)
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    return tmp_path


def run(data, config: str) -> Runner:
    cfg = Config.fromfile(ROOT / 'configs' / config)
    cfg.model.backbone.arch = TINY_ARCH
    cfg.model.neck.in_channels = 20
    if cfg.model.type == 'QBHeat':
        cfg.model.decoder.in_channels = 20
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir, cfg.experiment_name = str(data / 'run'), f'{data.name}_{cfg.model.type}'
    DefaultScope._instance_dict.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('method', ['qbheat/qbheat', 'mocov2/mocov2'])
def test_pretraining_reads_no_label(data, method):
    runner = run(data, f'{method}_mobile-former-52m_1xb128-coslr-12e_imagenette.py')
    assert runner.iter == 2
    assert not any('gt_label' in runner.train_dataloader.dataset.get_data_info(i) for i in range(8))


def test_the_trap_works(data):
    with pytest.raises(LabelWasRead):
        ImageFolderDataset(data_root=str(data), data_prefix='train')
    with pytest.raises(LabelWasRead):
        DataSample().set_gt_label(1)
