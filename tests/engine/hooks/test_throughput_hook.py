"""The log of every run, and TensorBoard."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from helpers.models import ROOT
from helpers.runs import run_config
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

OPTION = 'visualizer.vis_backends.0.type=TensorboardVisBackend'


@pytest.fixture
def run(images, tmp_path) -> Runner:
    """A finished run of two epochs with our runtime, its scalars in TensorBoard."""
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'default_runtime.py')
    small = run_config(tmp_path, images, train_cfg=dict(by_epoch=True, max_epochs=2))
    cfg.merge_from_dict({key: value for key, value in small.items() if key != 'default_hooks'})
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', OPTION, 'default_hooks.logger.interval=1']).cfg_options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_progress_eta_speed_and_memory_stand_in_the_log_and_the_loss_in_tensorboard(run):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (log,) = Path(run.work_dir).glob('*/*.log')
    lines = [line for line in log.read_text().splitlines() if 'Epoch(train)' in line]
    assert len(lines) == 4
    for line in lines:
        assert re.search(r'Epoch\(train\) +\[\d\]\[\d/2\].* eta: \d:\d\d:\d\d .*images_per_sec: \d+\.\d+ .*', line)
        assert 'memory: ' in line
    if not torch.cuda.is_available():
        peak = float(re.search(r'memory: ([\d.]+)', lines[-1])[1])
        assert 50 < peak < 1e6  # MiB of a process that imported torch
    seconds, speed = (float(re.search(rf'{name}: ([\d.]+)', lines[-1])[1]) for name in (' time', 'images_per_sec'))
    assert speed * seconds == pytest.approx(4, rel=0.05)  # the batch; the log rounds seconds

    (events,) = Path(run.work_dir).rglob('events.out.tfevents*')
    scalars = EventAccumulator(str(events))
    scalars.Reload()
    logged = run.message_hub.get_scalar('train/loss').data[0]
    stored = [event.value for event in scalars.Scalars('loss')]
    assert len(stored) == len(logged) == 4
    assert stored[0] == pytest.approx(logged[0], rel=1e-5)
    assert scalars.Scalars('images_per_sec')[-1].value == pytest.approx(speed, rel=1e-3)
