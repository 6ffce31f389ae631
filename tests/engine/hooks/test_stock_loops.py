"""Every hook in mmengine's own loops, on models and data that have nothing to do with this project."""

import pytest
import torch
from helpers.runs import NAMES
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader, StackDataset

from qbheat_mm.engine import hooks

ON_REQUEST = {'WhiteningHook', 'KnnHook', 'ReconstructionHook', 'CompileHook', 'CalibrateBNHook'}  # refuse such models
EVERY_HOOK = pytest.mark.parametrize('name', sorted(set(hooks.__all__) - ON_REQUEST))


class Stock(BaseModel):
    """Its training step returns what it is told, as in mmpretrain's vis_scheduler.py and in GANs."""

    def __init__(self, outputs=None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.outputs = outputs

    def forward(self, *args, **kwargs):
        return [BaseDataElement()]

    def train_step(self, data, optim_wrapper):
        return self.outputs


class FakeLoader(list):
    """That of mmpretrain's vis_scheduler.py."""

    dataset = object()


class Nothing(BaseMetric):
    """Measures nothing."""

    def process(self, data_batch, data_samples):
        self.results.append(None)

    def compute_metrics(self, results):
        return {}


def adamw(model):
    return OptimWrapper(torch.optim.AdamW(model.parameters()))


def build(name, work_dir, **kwargs):
    return Runner(
        work_dir=str(work_dir),
        default_hooks=dict(checkpoint=None, logger=None, ours=dict(type=name)),
        experiment_name=next(NAMES),
        default_scope='mmpretrain',
        **kwargs,
    )


def samples():
    return DataLoader(StackDataset(inputs=torch.zeros(4, 1)))


@EVERY_HOOK
@pytest.mark.parametrize(
    'train_cfg', [dict(by_epoch=True, max_epochs=1), dict(by_epoch=False, max_iters=2)], ids=['epochs', 'iterations']
)
@pytest.mark.parametrize('loader', [samples, lambda: FakeLoader(range(4))], ids=['samples', 'list'])
@pytest.mark.parametrize('several', [False, True], ids=['one', 'several'])
@pytest.mark.parametrize('outputs', [None, dict(accuracy=1.0)], ids=str)
def test_training_without_a_loss(name, train_cfg, loader, several, outputs, tmp_path):
    model = Stock(outputs)
    optimizers = OptimWrapperDict(one=adamw(model), other=adamw(model)) if several else adamw(model)
    runner = build(
        name, tmp_path, model=model, train_dataloader=loader(), train_cfg=train_cfg, optim_wrapper=optimizers
    )
    runner.train()
    runner.save_checkpoint(str(tmp_path), 'last.pth')


@EVERY_HOOK
@pytest.mark.parametrize('split', ['val', 'test'])
def test_no_training(name, split, tmp_path):
    fields = {f'{split}_dataloader': samples(), f'{split}_cfg': {}, f'{split}_evaluator': [Nothing()]}
    getattr(build(name, tmp_path, model=Stock(), **fields), split)()
