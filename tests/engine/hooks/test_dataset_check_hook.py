import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.coco import coco_dataset
from helpers.runs import image_loader, run_config
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import distributed as dist
from torch import nn

from qbheat_mm.datasets.coco import AnnotationError
from qbheat_mm.engine.hooks import DatasetCheckHook
from qbheat_mm.engine.launch import prepare_hooks

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_id',))]


@MODELS.register_module()
class CountingDetector(BaseModel):
    """Counts its training steps."""

    def __init__(self, bbox_head):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.steps = 0

    def forward(self, inputs, data_samples, mode):
        self.steps += 1
        return dict(loss=self.weight * 1.0)


@pytest.fixture
def run(make_coco, tmp_path):
    make_coco()

    def train(num_classes=2, options=None) -> int:
        loader = dict(image_loader(tmp_path, batch_size=2), collate_fn=dict(type='pseudo_collate'))
        cfg = run_config(
            tmp_path / 'work',
            tmp_path,
            default_scope='mmdet',
            model=dict(type='mmengine.CountingDetector', bbox_head=dict(num_classes=num_classes)),
            train_dataloader=loader | dict(dataset=coco_dataset(tmp_path, pipeline=PIPELINE)),
            default_hooks=dict(dataset_check=dict(type='DatasetCheckHook'), checkpoint=None, logger=None),
        )
        cfg.merge_from_dict(options or {})
        prepare_hooks(cfg, trust=False)
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.model.steps

    return train


def test_sound_data_is_trained_on(run):
    assert run() == 2


def test_errors_stop_before_the_first_step(run, tmp_path, monkeypatch):
    (tmp_path / 'images' / 'train_2.png').unlink()
    monkeypatch.setattr(CountingDetector, 'forward', lambda *args, **kwargs: pytest.fail('a step was taken'))
    with pytest.raises(
        AnnotationError, match=r'train: .*train_2\.png[\s\S]*num_classes is 80[\s\S]*dataset_check=None'
    ):
        run(num_classes=80)


def test_a_field_of_the_command_line_switches_it_off(run):
    assert run(num_classes=80, options={'default_hooks.dataset_check': None}) == 2


def check_in_a_process(rank: int, folder: str) -> None:
    """Write the error of the check in this process to a file."""
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    cfg = Config(dict(train_dataloader=dict(dataset=coco_dataset(folder, classes=('bird',)))))
    try:
        DatasetCheckHook().before_train(SimpleNamespace(cfg=cfg, logger=logging.getLogger()))
    except AnnotationError as error:
        (Path(folder) / f'error_{rank}').write_text(str(error))


@pytest.mark.slow
def test_all_processes_stop_together(make_coco, tmp_path):
    make_coco()
    torch.multiprocessing.start_processes(check_in_a_process, (str(tmp_path),), nprocs=2, start_method='fork')
    errors = [(tmp_path / f'error_{rank}').read_text() for rank in range(2)]
    assert errors[0] == errors[1]
    assert "'bird'" in errors[0]
