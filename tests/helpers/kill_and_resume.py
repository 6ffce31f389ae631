"""Kill small runs at random moments, resume them, and check that nothing is lost.

    PYTHONPATH=tests python tests/helpers/kill_and_resume.py --kills 30

Pre-trainings from files and from packed images, in two processes, and by iterations with accumulated gradients, a
probe and a detection on generated images run through tools/train.py, in processes forked from this one, so that a
start takes a second. Each runs once without a kill, then until there were enough kills: two in three at a random
moment, one in three while a checkpoint is written, after a random number of its bytes. One kill in three is of the
main process alone: its workers have to end by themselves, and the run resumes before they do. At times the run
receives SIGTERM instead, and at times the last checkpoint is damaged before the run resumes. Checked each time: every
checkpoint is complete, the run resumes from a complete one, and at most one checkpoint interval is lost (nothing
after SIGTERM; one interval more with a damaged file). A finished run has the weights and the optimizer state of the
run that was never killed, bit for bit.

Exits with 1 after a failed check, and leaves the folder.
"""

from __future__ import annotations

import argparse
import json
import mmap
import operator
import os
import random
import runpy
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

import qbheat_mm  # noqa: F401  before the forks
from helpers.coco import ATTENTION, FEED_FORWARD, TINY_DETR
from helpers.models import PIPELINE, ROOT, TINY_ARCH, qbheat_config
from helpers.runs import image_loader
from qbheat_mm.checkpoint import read_checkpoint
from qbheat_mm.checkpoint.atomic import PARTIAL, damage
from qbheat_mm.checkpoint.resume import POINTER
from qbheat_mm.datasets.packing import pack_images

BATCHES, EPOCHS = 4, 6  # an epoch's, which ends with a checkpoint
CLASSES = ('one', 'two')
ENDINGS = {128 + signal.SIGTERM: 'terms', -signal.SIGTERM: 'terms before training', -signal.SIGKILL: 'kills'}

PIPELINES = dict(
    load=dict(type='LoadImageFromFile', imdecode_backend='pillow', ignore_empty=True),
    crop=[dict(type='RandomResizedCrop', scale=64, backend='pillow'), dict(type='RandomFlip', prob=0.5)],
)
PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def pretraining(folder: Path) -> dict:
    """QB-Heat."""
    return dict(model=qbheat_config(), train_dataloader=image_loader(folder / 'folder', pipeline=PIPELINE))


def two_processes(folder: Path) -> dict:
    """QB-Heat in two processes, in batches of two each."""
    return dict(
        model=qbheat_config(), train_dataloader=image_loader(folder / 'folder', batch_size=2, pipeline=PIPELINE)
    )


def iterations(folder: Path) -> dict:
    """QB-Heat by iterations, two batches to a step."""
    scheduler = dict(type='CosineAnnealingLR', T_max=EPOCHS * BATCHES, by_epoch=False)
    return dict(
        model=qbheat_config(),
        train_dataloader=image_loader(folder / 'folder', sampler='InfiniteSampler', pipeline=PIPELINE),
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=EPOCHS * BATCHES),
        optim_wrapper=dict(accumulative_counts=2),
        param_scheduler=[scheduler],
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=BATCHES)),
        log_processor=dict(by_epoch=False),
    )


def packed(folder: Path) -> dict:
    """QB-Heat on packed images, cropped on the device."""
    cfg = pretraining(folder)
    cfg['model']['data_preprocessor']['type'] = 'ViewDataPreprocessor'
    cfg['train_dataloader']['collate_fn']['type'] = 'collate_views'
    pipeline = [*PIPELINE[:2], dict(type='RandomFlip', prob=0.5), *PIPELINE[2:]]
    cfg['train_dataloader']['dataset'].update(
        type='PackedImageDataset', data_root=str(folder / 'packed'), device_crops=True, pipeline=pipeline
    )
    return cfg


def probe(folder: Path) -> dict:
    """A classifier with dropped paths and Mixup, validated, its best checkpoint kept."""
    load, pack = PIPELINES['load'], dict(type='PackInputs')
    train, val = [load, *PIPELINES['crop'], pack], [load, dict(type='Resize', scale=64), pack]
    loaders = [
        image_loader(folder / 'folder', with_label=True, pipeline=each, test_mode=each is val) for each in (train, val)
    ]
    return dict(
        train_dataloader=loaders[0],
        val_dataloader=loaders[1],
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        val_cfg=dict(),
        default_hooks=dict(checkpoint=dict(save_best='auto')),
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=2, **PIXELS),
            backbone=dict(type='MobileFormer', arch=TINY_ARCH, drop_path_rate=0.1),
            neck=dict(type='GlobalAveragePooling'),
            train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)),
            head=dict(
                type='LinearClsHead',
                num_classes=2,
                in_channels=20,
                loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
            ),
        ),
    )


def detection(folder: Path) -> dict:
    """A DETR with dropout, in batches by aspect ratio, validated."""

    def loader(pipeline: list, **kwargs) -> dict:
        load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
        dataset = dict(
            type='CocoDataset',
            ann_file=str(folder / 'coco.json'),
            data_prefix=dict(img=str(folder / 'coco')),
            metainfo=dict(classes=CLASSES),
            pipeline=load + pipeline,
        )
        return dict(image_loader(folder), collate_fn=dict(type='pseudo_collate'), dataset=dataset, **kwargs)

    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    resize = dict(type='RandomChoiceResize', scales=[(64, 64), (80, 80), (96, 96)], keep_ratio=True)
    model = deepcopy(TINY_DETR)
    for layers in (model['encoder'], model['decoder']):
        for attention in ('self_attn_cfg', 'cross_attn_cfg'):
            if attention in layers['layer_cfg']:
                layers['layer_cfg'][attention] = dict(ATTENTION, dropout=0.1)
        layers['layer_cfg']['ffn_cfg'] = dict(FEED_FORWARD, ffn_drop=0.1)
    return dict(
        model=model,
        train_dataloader=loader(
            [dict(type='RandomFlip', prob=0.5), resize, dict(type='PackDetInputs')],
            batch_sampler=dict(type='AspectRatioBatchSampler'),
        ),
        val_dataloader=loader(
            [dict(type='Resize', scale=(96, 96), keep_ratio=True), dict(type='PackDetInputs', meta_keys=meta_keys)]
        ),
        val_evaluator=dict(type='CocoBBoxMetric', ann_file=str(folder / 'coco.json')),
        val_cfg=dict(),
    )


KINDS = {
    'pre-training': pretraining,
    'packed': packed,
    'two processes': two_processes,
    'iterations': iterations,
    'probe': probe,
    'detection': detection,
}
LAST = {kind: f'epoch_{EPOCHS}.pth' for kind in KINDS} | {'iterations': f'iter_{EPOCHS * BATCHES}.pth'}


PROGRESS = mmap.mmap(-1, 16)  # shared with the forked runs: where a run began, and how many iterations are done


def write_progress(began: int, done: int) -> None:
    """Called in the run."""
    PROGRESS[:] = struct.pack('qq', began, done)


def read_progress() -> tuple[int, int]:
    """Called here, whatever became of the run."""
    return struct.unpack('qq', PROGRESS[:])


@HOOKS.register_module()
class ProgressHook(Hook):
    """Report to the parent process."""

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Report where the run begins."""
        self.began = runner.iter
        self.after_train_iter(runner, 0, done=self.began)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None, done: int | None = None) -> None:
        """Report how many iterations are done."""
        if is_main_process():
            write_progress(self.began, runner.iter + 1 if done is None else done)


def write_data(folder: Path, rng: np.random.Generator) -> None:
    """Images in two class folders, and in COCO's format with boxes, portraits among them."""
    content = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)])
    for i in range(4 * BATCHES):
        size = ((96, 64), (64, 96))[i % 3 == 0]
        image = Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)).resize(size)
        for path in (folder / 'folder' / CLASSES[i % 2] / f'{i}.png', folder / 'coco' / f'{i}.png'):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        content['images'].append(dict(id=i, file_name=f'{i}.png', width=size[0], height=size[1]))
        box = [float(v) for v in (*rng.uniform(0, 20, 2), *rng.uniform(20, 40, 2))]
        content['annotations'].append(
            dict(id=i + 1, image_id=i, category_id=i % 2, bbox=box, area=box[2] * box[3], iscrowd=0)
        )
    (folder / 'coco.json').write_text(json.dumps(content))
    pack_images(folder / 'folder', folder / 'packed')


def write_config(kind: str, folder: Path) -> Path:
    """The config of a run with our runtime."""
    runtime = 'detection_runtime' if kind == 'detection' else 'default_runtime'
    cfg = Config.fromfile(ROOT / f'configs/_base_/{runtime}.py')
    cfg.merge_from_dict(
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=EPOCHS),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=1.0)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, end=5, by_epoch=False),
                dict(type='CosineAnnealingLR', T_max=EPOCHS, by_epoch=True),
            ],
            default_hooks=dict(logger=dict(interval=1), progress=dict(type='ProgressHook')),
        )
    )
    cfg.merge_from_dict(KINDS[kind](folder))
    for loader in (cfg.train_dataloader, cfg.get('val_dataloader')):
        if loader:
            loader.update(num_workers=1, persistent_workers=True)
    cfg.dump(folder / f'{kind}.py')
    return folder / f'{kind}.py'


def die_in_write(rng: random.Random, alone: bool) -> None:
    """Kill this process, alone or with its group, in one of its next writes of a checkpoint, after a share of it."""
    left, share = rng.randrange(1, 5), rng.choice([0.0, rng.random(), 1.0])

    def fsync(number: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.ftruncate(number, int(share * os.fstat(number).st_size))
            send(os.getpid(), signal.SIGKILL, alone)

    os.fsync = fsync


def send(pid: int, signum: int, alone: bool) -> None:
    """Send a signal to a process, or to its whole group."""
    (os.kill if alone else os.killpg)(pid if alone else os.getpgid(pid), signum)


def remaining(group: int, seconds: float = 60) -> list[str]:
    """What is left of a process group after some time: ids and names."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for path in Path('/proc').glob('[0-9]*/stat'):
            try:
                name, _, fields = path.read_text().rpartition(')')
            except OSError:  # it has just ended
                continue
            state, _, its_group = fields.split()[:3]
            if int(its_group) == group and state not in 'ZX':
                found.append(f'{name})')
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def join_other_process(port: int) -> list[str]:
    """Fork rank 1 of two processes; the options of the command line for both."""
    rank = int(os.fork() == 0)
    rendezvous = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=2, RANK=rank, LOCAL_RANK=rank)
    os.environ.update({name: str(value) for name, value in rendezvous.items()})
    return ['--launcher', 'pytorch']


def start(config: Path, work_dir: Path, rng: random.Random | None = None, alone: bool = False) -> int:
    """tools/train.py in a new process of its own group; returns its id."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        work_dir.mkdir(exist_ok=True)
        output = os.open(work_dir / 'output.txt', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if rng is not None:
            die_in_write(rng, alone)
        sys.argv = ['train.py', str(config), '--work-dir', str(work_dir), '--resume']
        if config.stem == 'two processes':
            sys.argv += join_other_process(port)
        runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


@dataclass
class Figures:
    """Observations of one kind of run."""

    seconds: float = 0.0
    counts: Counter = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end(pid: int, signum: int, after: float, alone: bool) -> int:
    """Send a signal after some seconds; the exit code of the run, which may have ended before."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    send(pid, signum, alone)
    return wait(pid)


def spoil(work_dir: Path, rng: random.Random) -> Path | None:
    """Damage the checkpoint that the run would resume from, if there is another complete one."""
    pointer = work_dir / POINTER
    last = Path(pointer.read_text()) if pointer.is_file() else None
    if last is None or all(path == last or damage(path) for path in work_dir.glob('[ei]*_*.pth')):
        return None
    content = bytearray(last.read_bytes())
    place = rng.randrange(len(content) // 4, len(content) // 2)
    if rng.random() < 0.5:
        del content[place:]
    else:
        content[place : place + 64] = bytes(byte ^ 255 for byte in content[place : place + 64])
    last.write_bytes(content)
    return last if damage(last) else None  # it may have hit padding, which is harmless


def differences(path: Path, other: Path) -> list[str]:
    """Names of the tensors and values that differ in any bit."""

    def flat(value, name: str = '') -> dict:
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            return {k: v for key, each in value.items() for k, v in flat(each, f'{name}.{key}').items()}
        return {name: value}

    parts = ('state_dict', 'optimizer', 'param_schedulers')
    mine, its = (flat({key: read_checkpoint(file)[key] for key in parts}) for file in (path, other))
    differing = mine.keys() ^ its.keys()
    for key in mine.keys() & its.keys():
        equal = torch.equal if torch.is_tensor(mine[key]) else operator.eq
        if not equal(mine[key], its[key]):
            differing.add(key)
    return sorted(differing)


def torture(kind: str, folder: Path, kills: int, rng: random.Random) -> Figures:
    """Repeat one kind of training until it was killed ``kills`` times."""
    figures, config = Figures(), write_config(kind, folder)
    reference, last = folder / f'{kind}-undisturbed', LAST[kind]
    began = time.monotonic()
    if wait(start(config, reference)):
        figures.faults.append(f'{kind}: fails without being killed, see {reference}/output.txt')
    figures.seconds = time.monotonic() - began
    for number in count(1):
        work_dir = folder / f'{kind}-{number}'
        if figures.faults or not run_to_the_end(config, work_dir, kills, rng, figures):
            return figures
        if not (work_dir / last).is_file():
            figures.faults.append(f'{work_dir}: ended without {last}')
        elif differing := differences(work_dir / last, reference / last):
            figures.faults.append(f'{work_dir}: {len(differing)} values differ at the end, {differing[0]} the first')
        figures.counts['runs compared'] += 1
        if figures.counts['kills'] >= kills:
            return figures
        if not figures.faults:
            shutil.rmtree(work_dir)


def run_to_the_end(config: Path, work_dir: Path, kills: int, rng: random.Random, figures: Figures) -> bool:
    """Start a run, end it and resume it until it ends by itself; whether it does so without an error."""
    write_progress(0, 0)
    allowed, spoilt, groups = 0, {}, []
    while True:
        before = read_progress()[1]
        write_progress(before, before)
        mortal = figures.counts['kills'] < kills
        writing = mortal and rng.random() < 1 / 3
        # Of two processes the launcher, which is not part of this, ends the other one.
        alone = config.stem != 'two processes' and rng.random() < 1 / 3
        pid = start(config, work_dir, random.Random(rng.random()) if writing else None, alone)
        groups.append(pid)
        if mortal and not writing:
            signum = signal.SIGTERM if rng.random() < 1 / 5 else signal.SIGKILL
            code = end(pid, signum, rng.uniform(0, figures.seconds), alone)
        else:
            code = wait(pid)
        where = f'{work_dir}, after {sum(figures.counts.values())} endings'
        began, done = read_progress()
        if (began, done) != (before, before):  # otherwise it ended before training, or did nothing
            if before:
                figures.lost.append(before - began)
            if before - began > allowed:
                figures.faults.append(f'{where}: lost {before - began} iterations, allowed are {allowed}')
            allowed = 0 if code == 128 + signal.SIGTERM else BATCHES
        if code == 0:
            figures.faults += [f'{where}: {left} outlive their main process' for left in map(remaining, groups) if left]
            return True
        if code not in ENDINGS:
            figures.faults.append(f'{where}: exit code {code}, see {work_dir}/output.txt')
            return False
        figures.counts[ENDINGS[code]] += 1
        figures.counts['of the main process alone'] += alone and code == -signal.SIGKILL
        figures.counts['kills in a write'] += writing and code == -signal.SIGKILL
        figures.counts['partial files left'] += len(list(work_dir.glob('*' + PARTIAL)))
        for path in work_dir.glob('*.pth'):
            if (reason := damage(path)) and spoilt.get(path) != path.stat().st_mtime_ns:
                figures.faults.append(f'{where}: {path} is damaged: {reason}')
        if rng.random() < 1 / 5 and (path := spoil(work_dir, rng)):
            spoilt[path] = path.stat().st_mtime_ns
            figures.counts['spoilt'] += 1
            allowed += BATCHES


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=30, help='by SIGKILL, over all kinds of run')
    parser.add_argument('--kinds', nargs='+', choices=list(KINDS), default=list(KINDS))
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Kill, resume, compare; print the figures."""
    args = parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix='kill_harness_'))
    write_data(folder, np.random.default_rng(args.seed))
    rng, faults = random.Random(args.seed), []
    for number, kind in enumerate(args.kinds):
        kills = args.kills // len(args.kinds) + (number < args.kills % len(args.kinds))
        figures = torture(kind, folder, kills, rng)
        faults += figures.faults
        counts = ', '.join(f'{name} {count}' for name, count in figures.counts.items())
        lost = f'{max(figures.lost, default=0)} at the most, {np.mean(figures.lost or [0]):.1f} on average'
        print(
            f'{kind}: {figures.seconds:.1f} s undisturbed; {counts}; iterations lost per ending: {lost} '
            f'(a checkpoint each {BATCHES})',
            flush=True,
        )
    for fault in faults:
        print(f'FAULT {fault}')
    if faults:
        sys.exit(f'{len(faults)} checks failed; everything lies in {folder}')
    shutil.rmtree(folder)
    print('All checks hold: no damaged file, nothing lost beyond one interval, the same bits at the end.')


if __name__ == '__main__':
    main()
