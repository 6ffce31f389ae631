from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS


def say(monkeypatch, accumulated: int = 1, enable: bool = True) -> list[str]:
    said = []
    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: 4)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.05)
    optimizer.param_groups[0]['initial_lr'] = 0.2  # the scheduler warms up
    HOOKS.build(dict(type='EffectiveBatchHook')).before_train(
        SimpleNamespace(
            _resume=False,
            cfg=Config(dict(auto_scale_lr=dict(base_batch_size=1024, enable=enable))),
            logger=SimpleNamespace(info=said.append, warning=said.append),
            optim_wrapper=OptimWrapper(optimizer, accumulative_counts=accumulated),
            param_schedulers=None,
            train_dataloader=torch.utils.data.DataLoader(range(100), batch_size=32),
        )
    )
    return said


def test_batch_and_peak_rate_are_told(monkeypatch):
    (text,) = say(monkeypatch)
    assert '4 process(es) x 32 images x 1 accumulated = 128' in text
    assert 'peak learning rate 0.2, scaled from a batch of 1024' in text
    assert '100 images, 4 iterations' in text
    assert 'as in the config' in say(monkeypatch, enable=False)[0]


def test_accumulation_that_the_scaling_does_not_count_is_told(monkeypatch):
    text, warning = say(monkeypatch, accumulated=2)
    assert 'x 2 accumulated = 256' in text
    assert 'does not count the 2 accumulated' in warning
