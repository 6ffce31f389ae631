"""Stress test of resuming: kill small runs at random moments, resume them, and check that nothing is lost.

    python tools/misc/kill_and_resume.py --kills 30

A pre-training, a probe and a detection on generated images run through tools/train.py, in processes forked from this
one so that a start takes a second. Each runs once undisturbed. Then they are killed until there were enough kills: two
in three at a random moment, one in three while a checkpoint is written, after a random share of its bytes. Sometimes
the run receives SIGTERM instead, and sometimes its last checkpoint is damaged before it resumes. Checked each time:
every checkpoint is complete, the run resumes from a complete one, and loses at most one checkpoint interval (after
SIGTERM nothing, with a damaged file one interval more). A run that reaches its end has the weights and the optimizer
state of the undisturbed one, bit for bit.

Exits with 1 if a check failed, and keeps the folder.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import runpy
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

import qbheat_mm  # noqa: F401  before the forks
from qbheat_mm.checkpoint import read_checkpoint
from qbheat_mm.checkpoint.atomic import PARTIAL, damage
from qbheat_mm.checkpoint.resume import POINTER

ROOT = Path(__file__).resolve().parents[2]
BATCHES, EPOCHS = 4, 6  # an epoch's, which ends with a checkpoint
CLASSES = ('one', 'two')
ENDINGS = {128 + signal.SIGTERM: 'terms', -signal.SIGTERM: 'terms before training', -signal.SIGKILL: 'kills'}

COMMON = """
_base_ = ['{root}/configs/_base_/{runtime}.py']
train_cfg = dict(by_epoch=True, max_epochs={epochs})
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=5, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max={epochs}, by_epoch=True),
]
default_hooks = dict(logger=dict(interval=1), progress=dict(type='ProgressHook'))
arch = dict(stem_channels=8, token_dims=16, num_tokens=2, blocks=[
    (2, 8, 2, 0), (2, 8, 1, 2), (2, 12, 2, 2), (2, 16, 2, 2), (2, 16, 1, 2), (2, 20, 2, 2)])
pixels = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
def loader(dataset, shuffle, **kwargs):
    return dict(batch_size=4, num_workers=1, persistent_workers=True, dataset=dataset,
                sampler=dict(type='DefaultSampler', shuffle=shuffle), **kwargs)
def folder(pipeline, with_label, test_mode=False):
    return dict(type='ImageFolderDataset', data_root='{data}/folder', with_label=with_label, test_mode=test_mode,
                pipeline=[dict(type='LoadImageFromFile', imdecode_backend='pillow', ignore_empty=True), *pipeline])
crop = [dict(type='RandomResizedCrop', scale=64, backend='pillow'), dict(type='RandomFlip', prob=0.5)]
"""
KINDS = {
    'pre-training': """
train_dataloader = loader(
    folder([*crop, dict(type='QuarterMask'),
            dict(type='PackInputs', meta_keys=('img_path', 'visible_origin'))], False), True)
model = dict(
    type='QBHeat', patch_size=16,
    data_preprocessor=dict(type='SelfSupDataPreprocessor', **pixels),
    backbone=dict(type='MobileFormer', arch=arch, output_stride=16),
    neck=dict(type='HeatNeck', in_channels=20),
    decoder=dict(type='QBHeatDecoder', in_channels=20, out_channels=768, embed_dims=16, depth=1, num_heads=2),
    head=dict(type='QBHeatPretrainHead', loss=dict(type='PixelReconstructionLoss', criterion='L2')))
""",
    'probe': """
train_dataloader = loader(folder([*crop, dict(type='PackInputs')], True), True)
val_dataloader = loader(
    folder([dict(type='Resize', scale=64), dict(type='PackInputs')], True, test_mode=True), False)
val_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = dict()
model = dict(
    type='ImageClassifier', data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=2, **pixels),
    backbone=dict(type='MobileFormer', arch=arch, drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'), train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=20,
              loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
default_hooks['checkpoint'] = dict(save_best='auto')
""",
    'detection': """
def coco(pipeline, **kwargs):
    return dict(type='CocoDataset', ann_file='{data}/coco.json', data_prefix=dict(img='{data}/coco'),
                metainfo=dict(classes={classes}),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), *pipeline],
                **kwargs)
train_dataloader = loader(
    coco([dict(type='RandomFlip', prob=0.5),
          dict(type='RandomChoiceResize', scales=[(64, 64), (80, 80), (96, 96)], keep_ratio=True),
          dict(type='PackDetInputs')]), True, batch_sampler=dict(type='AspectRatioBatchSampler'))
val_dataloader = loader(
    coco([dict(type='Resize', scale=(96, 96), keep_ratio=True), dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))], test_mode=True), False)
val_evaluator = dict(type='CocoBBoxMetric', ann_file='{data}/coco.json')
val_cfg = dict()
attention = dict(embed_dims=16, num_heads=2, dropout=0.1)
mlp = dict(embed_dims=16, feedforward_channels=16, ffn_drop=0.1)
model = dict(
    type='DETR', num_queries=5, data_preprocessor=dict(type='DetDataPreprocessor', **pixels),
    backbone=dict(type='mmpretrain.MobileFormer', arch=arch, out_indices=(2,)),
    neck=dict(type='ChannelMapper', in_channels=[16], kernel_size=1, out_channels=16, num_outs=1),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=mlp)),
    decoder=dict(num_layers=1, return_intermediate=True,
                 layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=mlp)),
    positional_encoding=dict(num_feats=8, normalize=True),
    bbox_head=dict(type='DETRHead', num_classes=2, embed_dims=16,
                   loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0)),
    train_cfg=dict(assigner=dict(
        type='HungarianAssigner', match_costs=[dict(type='ClassificationCost', weight=1.0)])),
    test_cfg=dict(max_per_img=5))
""",
}


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
        write_progress(self.began, self.began)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Report how many iterations are done."""
        write_progress(self.began, runner.iter + 1)


def write_data(folder: Path, rng: np.random.Generator) -> None:
    """Images in two class folders, and in COCO's format with boxes, portraits among them."""
    content = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)])
    for i in range(4 * BATCHES):
        name = CLASSES[i % 2]
        width, height = ((96, 64), (64, 96))[i % 3 == 0]
        image = Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)).resize((width, height))
        for path in (folder / 'folder' / name / f'{i}.png', folder / 'coco' / f'{i}.png'):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        content['images'].append(dict(id=i, file_name=f'{i}.png', width=width, height=height))
        box = [float(v) for v in (*rng.uniform(0, 20, 2), *rng.uniform(20, 40, 2))]
        content['annotations'].append(
            dict(id=i + 1, image_id=i, category_id=i % 2, bbox=box, area=box[2] * box[3], iscrowd=0)
        )
    (folder / 'coco.json').write_text(json.dumps(content))


def write_config(kind: str, folder: Path) -> Path:
    path = folder / f'{kind}.py'
    text = COMMON + KINDS[kind]
    fields = dict(
        root=ROOT,
        runtime='detection_runtime' if kind == 'detection' else 'default_runtime',
        data=folder,
        epochs=EPOCHS,
        classes=CLASSES,
    )
    for name, value in fields.items():
        text = text.replace(f'{{{name}}}', str(value))
    path.write_text(text)
    return path


def die_in_write(rng: random.Random) -> None:
    """Kill this process and its workers in one of its next writes of a checkpoint, after a share of the bytes."""
    left, share = rng.randrange(1, 5), rng.choice([0.0, rng.random(), 1.0])

    def fsync(number: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.ftruncate(number, int(share * os.fstat(number).st_size))
            os.killpg(0, signal.SIGKILL)

    os.fsync = fsync


def start(config: Path, work_dir: Path, rng: random.Random | None = None) -> int:
    """tools/train.py in a new process of its own group; returns its id."""
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
            die_in_write(rng)
        sys.argv = ['train.py', str(config), '--work-dir', str(work_dir), '--resume']
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


def end(pid: int, signum: int, after: float) -> int:
    """Send a signal to the whole group after some seconds; the exit code of the run, which may have ended before."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signum)
    return wait(pid)


def spoil(work_dir: Path, rng: random.Random) -> Path | None:
    """Damage the checkpoint that the run would resume from, if there is another complete one."""
    pointer = work_dir / POINTER
    last = Path(pointer.read_text()) if pointer.is_file() else None
    if last is None or all(path == last or damage(path) for path in work_dir.glob('epoch_*.pth')):
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

    def flat(value, name=''):
        if isinstance(value, dict):
            return {k: v for key in value for k, v in flat(value[key], f'{name}.{key}').items()}
        if isinstance(value, (list, tuple)):
            return flat(dict(enumerate(value)), name)
        return {name: value}

    parts = ('state_dict', 'optimizer', 'param_schedulers')
    mine, its = (flat({key: read_checkpoint(file)[key] for key in parts}) for file in (path, other))
    same = {
        key: torch.equal(mine[key], its[key]) if torch.is_tensor(mine[key]) else mine[key] == its[key]
        for key in mine.keys() & its.keys()
    }
    return sorted(mine.keys() ^ its.keys()) + sorted(key for key, equal in same.items() if not equal)


def torture(kind: str, folder: Path, kills: int, rng: random.Random) -> Figures:
    """Repeat one kind of training until it was killed ``kills`` times."""
    figures, config = Figures(), write_config(kind, folder)
    reference, last = folder / f'{kind}-undisturbed', f'epoch_{EPOCHS}.pth'
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
    allowed, spoilt = 0, {}
    while True:
        before = read_progress()[1]
        write_progress(before, before)
        mortal = figures.counts['kills'] < kills
        writing = mortal and rng.random() < 1 / 3
        pid = start(config, work_dir, random.Random(rng.random()) if writing else None)
        if mortal and not writing:
            signum = signal.SIGTERM if rng.random() < 1 / 5 else signal.SIGKILL
            code = end(pid, signum, rng.uniform(0, figures.seconds))
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
            return True
        if code not in ENDINGS:
            figures.faults.append(f'{where}: exit code {code}, see {work_dir}/output.txt')
            return False
        figures.counts[ENDINGS[code]] += 1
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
