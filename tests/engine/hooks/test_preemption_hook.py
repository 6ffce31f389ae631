"""SIGTERM, SIGUSR1 and Ctrl-C end a run so that nothing is lost."""

import multiprocessing
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import At, log_of, pretraining, same_bits, send_sigterm

from qbheat_mm.checkpoint import read_checkpoint
from qbheat_mm.engine.hooks import PreemptionHook
from qbheat_mm.engine.hooks.preemption_hook import SIGNALS, _leave_signals_to_main


@contextmanager
def interrupted_by_sigterm():
    """Restores the handlers, as the end of the process would."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield handlers[signal.SIGTERM]
    for number, handler in handlers.items():
        signal.signal(number, handler)


def checkpoints(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob('*.pth*'))


@pytest.mark.parametrize('out_dir', [None, 'elsewhere'])
def test_sigterm_keeps_the_iteration_and_ends_with_143(images, tmp_path, out_dir):
    pretraining(tmp_path / 'whole', images).train()
    place = tmp_path / (out_dir or '') / 'cut'  # mmengine adds the name of the work dir
    checkpoint = dict(out_dir=str(tmp_path / out_dir)) if out_dir else {}
    with interrupted_by_sigterm() as handler:
        runner = pretraining(tmp_path / 'cut', images, checkpoint)
        runner.register_hook(At(6, send_sigterm))
        with pytest.raises(SystemExit) as info:
            runner.train()
    assert info.value.code == 143
    assert 'SIGTERM: stopped at iteration 6, saved to' in log_of(tmp_path / 'cut')
    assert checkpoints(place) == ['epoch_1.pth', 'interrupted.pth']
    content = read_checkpoint(place / 'interrupted.pth')
    assert content['resume_point'] == dict(done=2, batches=4)

    pretraining(tmp_path / 'cut', images, checkpoint, resume=True).train()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert checkpoints(place) == ['epoch_1.pth', 'epoch_2.pth']
    assert same_bits(place / 'epoch_2.pth', tmp_path / 'whole' / 'epoch_2.pth')


def test_sigterm_waits_for_accumulated_gradients(images, tmp_path):
    runner = pretraining(tmp_path, images, optim_wrapper=dict(accumulative_counts=2))
    runner.register_hook(At(5, send_sigterm))
    with interrupted_by_sigterm(), pytest.raises(SystemExit):
        runner.train()
    assert read_checkpoint(tmp_path / 'interrupted.pth')['meta']['iter'] == 6


@pytest.mark.parametrize('number', SIGNALS)
def test_each_signal_keeps_the_iteration(images, tmp_path, number):
    with interrupted_by_sigterm():
        runner = pretraining(tmp_path, images)
        runner.register_hook(At(3, partial(send_sigterm, number)))
        with pytest.raises(SystemExit) as info:
            runner.train()
    assert info.value.code == 128 + number
    assert f'{signal.Signals(number).name}: stopped at iteration 3, saved to' in log_of(tmp_path)
    assert read_checkpoint(tmp_path / 'interrupted.pth')['meta']['iter'] == 3


def test_the_second_ctrl_c_ends_at_once(images, tmp_path):
    runner = pretraining(tmp_path, images)
    runner.register_hook(At(3, lambda: [send_sigterm(signal.SIGINT), send_sigterm(signal.SIGINT)]))
    with interrupted_by_sigterm(), pytest.raises(KeyboardInterrupt):
        runner.train()
    assert not checkpoints(tmp_path)


def ignorant_of_it(queue) -> None:
    _leave_signals_to_main(None, 0)
    queue.put('ready')
    time.sleep(600)


def test_workers_leave_sigterm_to_the_main_process_and_end_when_that_ends_them():
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    worker = context.Process(target=ignorant_of_it, args=(queue,), daemon=True)
    worker.start()
    assert queue.get(timeout=60) == 'ready'
    for number in SIGNALS:  # of another process
        subprocess.run([sys.executable, '-S', '-c', f'import os; os.kill({worker.pid}, {number:d})'], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_several_processes_agree_every_tenth_iteration_and_stop_where_gradients_are_used_up(monkeypatch):
    """Another process received the signal; between two agreements there is no collective operation."""
    reduced, stopped = [], []

    def all_reduce(flag: torch.Tensor, op: str) -> None:
        reduced.append(runner.iter + 1)
        flag.fill_(runner.iter + 1 >= 15)

    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: 2)
    monkeypatch.setattr('mmengine.dist.all_reduce', all_reduce)
    hook = PreemptionHook()
    monkeypatch.setattr(hook, '_stop', lambda runner, meta: stopped.append(meta['iter']))
    runner = SimpleNamespace(epoch=0)
    runner.optim_wrapper = SimpleNamespace(should_update=lambda: (runner.iter + 1) % 4 == 0)
    for runner.iter in range(24):
        hook.after_train_iter(runner, runner.iter)
    assert reduced == [10, 20]
    assert stopped == [20, 24]
