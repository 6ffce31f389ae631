"""Whole runs on the device: started as people start them, killed, compiled, moved to a CPU and back."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import PIPELINE, ROOT, qbheat_config, write_images
from helpers.probes import probe
from helpers.runs import image_loader, pretraining, python_path, run, write_config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from qbheat_mm.apis import QBHeatInferencer
from qbheat_mm.checkpoint import read_checkpoint
from qbheat_mm.engine.feature_cache import cache_features

# CUDA adds floats in another order each time (atomics in the gradients of gathers, split sums in cuDNN and cuBLAS), so
# curves of the same run part slowly; what a lost or repeated iteration does is two orders of magnitude larger.
DRIFT = 2e-3

KILLER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Killer(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == int(os.environ.get('KILL_AT', 0)):
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Losses(Hook):
    """Keeps the loss of each iteration."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.values.append(float(outputs['loss']))


def train(runner: Runner, device: torch.device) -> list[float]:
    losses = Losses()
    runner.register_hook(losses)
    assert next(runner.model.parameters()).device.type == device.type
    runner.train()
    return losses.values


@pytest.fixture
def project(tmp_path) -> Path:
    """A config of mixed precision with images: four epochs of four batches."""
    write_images(tmp_path / 'photos', 8)
    (tmp_path / 'killer.py').write_text(KILLER)
    write_config(
        tmp_path,
        custom_imports=dict(imports=['qbheat_mm', 'killer'], allow_failed_imports=False),
        model=qbheat_config(),
        train_dataloader=image_loader('photos', batch_size=2) | dict(num_workers=1),
        optim_wrapper=dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4),
        default_hooks=dict(logger=dict(interval=1), killer=dict(type='Killer')),
    )
    return tmp_path


def dist_train(project: Path, work_dir: str, processes: int = 1, *options: str, fails: bool = False, **env: str) -> str:
    """The README's command."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    with socket.socket() as free:  # a port of its own, for tests in several processes
        free.bind(('127.0.0.1', 0))
        env['PORT'] = str(free.getsockname()[1])
    command = ('bash', ROOT / 'tools/dist_train.sh', 'config.py', str(processes), '--work-dir', work_dir, *options)
    return run(*command, cwd=project, fails=fails, PYTHONPATH=python_path(project), PATH=path, **env)


def curve(work_dir: Path) -> dict[int, float]:
    """Losses by iteration, of all starts of a run; of an iteration that was repeated, the last."""
    lines = [
        json.loads(line)
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def test_a_killed_run_continues_the_curve_of_the_undisturbed_one(project, device):
    """In one process of nccl, or gloo on a CPU, in mixed precision where there is a GPU."""
    output = dist_train(project, 'whole')
    assert ('mixed precision in' in output) == (device.type == 'cuda')
    dist_train(project, 'killed', KILL_AT='11', fails=True)
    assert max(curve(project / 'killed')) < 16
    dist_train(project, 'killed', 1, '--resume')
    whole, killed = curve(project / 'whole'), curve(project / 'killed')
    assert list(whole) == list(range(1, 17))
    assert killed.keys() == whole.keys()
    limit = DRIFT if device.type == 'cuda' else 0
    np.testing.assert_allclose(list(killed.values()), list(whole.values()), rtol=limit)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there are not two GPUs')
def test_two_processes_of_nccl(project):
    dist_train(project, 'two', 2)
    assert len(curve(project / 'two')) == 8
    assert (project / 'two' / 'epoch_4.pth').is_file()


def compile_options(device: torch.device) -> list[dict]:
    if device.type == 'cpu':
        return [dict(backend='aot_eager')]  # without a compiler of C++
    return [dict(), dict(mode='reduce-overhead')]


def test_compiled_parts_and_channels_last_train_alike(images, tmp_path, device):
    """Without dropped paths, which a compiled graph draws in another way."""
    plain = {'model.backbone.drop_path_rate': 0.0}
    whole = train(pretraining(tmp_path / 'eager', images, **plain), device)
    variants = []
    for i, options in enumerate(compile_options(device)):
        torch.compiler.reset()
        hook = {'default_hooks.compile': dict(type='CompileHook', **options)}
        variants.append(train(pretraining(tmp_path / f'compiled{i}', images, **plain, **hook), device))
    runner = pretraining(tmp_path / 'channels_last', images, **plain)
    runner.model.init_weights()  # before the memory's order becomes that of random numbers
    runner.model.to(memory_format=torch.channels_last)
    variants.append(train(runner, device))
    assert whole[-1] < whole[0]
    for losses in variants:
        np.testing.assert_allclose(losses, whole, rtol=5e-3)


def test_a_checkpoint_goes_to_a_cpu_and_back(project, device):
    """Each leg trains an epoch and resumes from the last one's checkpoint."""
    hidden = dict(CUDA_VISIBLE_DEVICES='-1')
    for epochs, env in ((1, {}), (2, hidden), (3, {})):
        options = ('--resume', '--cfg-options', f'train_cfg.max_epochs={epochs}')
        dist_train(project, 'run', 1, *options, **env)
    losses = curve(project / 'run')
    assert list(losses) == list(range(1, 13))
    assert losses[12] < losses[1]
    saved = read_checkpoint(project / 'run' / 'epoch_3.pth')
    assert {value.device.type for value in saved['state_dict'].values()} == {'cpu'}
    steps = {int(state['step']) for state in saved['optimizer']['state'].values()}
    assert steps == {12}


def test_the_inferencer(images, device):
    config = Config(dict(model=qbheat_config(), train_dataloader=dict(dataset=dict(pipeline=PIPELINE))))
    torch.manual_seed(0)
    here = QBHeatInferencer(config)
    assert next(here.model.parameters()).device.type == device.type
    there = QBHeatInferencer(config, device='cpu')
    there.model.load_state_dict(here.model.state_dict())
    results = [each.reconstruct(str(images), batch_size=3) for each in (here, there)]
    for result, expected in zip(*results, strict=True):
        assert result['reconstruction'].dtype == np.uint8
        assert np.abs(result['reconstruction'].astype(int) - expected['reconstruction']).max() <= 1
        assert result['masked_loss'] == pytest.approx(expected['masked_loss'], rel=1e-4)
    features = zip(here.extract_feat(str(images)), there.extract_feat(str(images)), strict=True)
    for (found,), (expected,) in features:
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


def test_the_feature_cache(probe_data, device):
    """A probe on cached features learns what the uncached one learns."""
    heads = []
    for name in ('plain', 'cached'):
        cfg = probe(probe_data, 'linear-noaug', name, epochs=3)
        cfg.merge_from_dict({'randomness.seed': 0, 'optim_wrapper.optimizer.lr': 0.1})
        cfg.param_scheduler = None
        if name == 'cached':
            cache_features(cfg, probe_data / 'cache')
        runner = Runner.from_cfg(cfg)
        torch.manual_seed(3)
        runner.model.head.init_weights()
        runner.model.head.init_weights = lambda: None
        train(runner, device)
        heads.append({key: value.cpu() for key, value in runner.model.head.state_dict().items()})
    torch.testing.assert_close(*heads, rtol=0, atol=5e-3)  # float16's rounding
