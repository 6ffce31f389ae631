"""Pre-train, probe and detect in minutes: every stage is a config run by tools/train.py.

    python demo/demo.py [--data FOLDER_OF_CLASS_FOLDERS] [--work-dir work_dirs/demo]

Ends with a table, summary.json and reconstruction.png in the work dir.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

WORK_DIR = Path('work_dirs/demo')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='your own images in class folders, for pre-training and probe')
    parser.add_argument('--work-dir', type=Path, default=WORK_DIR, help='%(default)s is emptied; others must be new')
    args = parser.parse_args()
    if args.work_dir.exists() and args.work_dir.resolve() != WORK_DIR.resolve():
        parser.error(f'"{args.work_dir}" exists; name another folder or remove it.')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from make_data import make_demo_data
from mmengine.config import Config

from qbheat_mm.apis import QBHeatInferencer
from qbheat_mm.checkpoint import atomic_write
from qbheat_mm.datasets.image_folder import scan_images
from qbheat_mm.engine.schedules import epoch_options
from qbheat_mm.visualization import draw_reconstructions

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'demo'
OWN_TRAIN = 1920  # training images of the demo itself; fewer images are trained on for more epochs


def train(name: str, config: str, work_dir: Path, data: Path, options: dict) -> float:
    """Run a config with tools/train.py in ``work_dir / name``, and print the progress.

    Returns:
        The duration in seconds.

    Raises:
        SystemExit: If the run fails, with the end of its log.
    """
    print(f'\n== {name}: {config}', flush=True)
    folder = work_dir / name
    folder.mkdir(parents=True)
    log = folder / 'train.log'
    command = [sys.executable, ROOT / 'tools' / 'train.py', CONFIGS / config, '--work-dir', folder]
    if options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    # NO_COLOR: Jupyter asks for colors, whose codes would be in the log
    env = dict(os.environ, DATA_ROOT=str(data), PYTHONUNBUFFERED='1', NO_COLOR='1')
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    start = time.monotonic()
    with log.open('w') as file, subprocess.Popen(command, cwd=ROOT, env=env, **pipe) as process:
        for line in process.stdout:
            file.write(line)
            if 'Epoch(' in line or 'qbheat_mm:' in line or 'could not be read' in line:
                print(line.rstrip().partition(' - INFO - ')[2] or line.rstrip(), flush=True)
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-30:])
        sys.exit(f'{tail}\nThe stage "{name}" failed; its whole log is {log}')
    return round(time.monotonic() - start, 1)


def curve(folder: Path, key: str) -> list[float]:
    """The values of a metric over a run, from mmengine's scalars."""
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    records = map(json.loads, scalars.read_text().splitlines())
    return [record[key] for record in records if key in record]


def split_folder(source: Path, out: Path) -> None:
    """Link a folder of class folders into ``out/train`` and ``out/val``; every fifth image is for validation.

    Raises:
        SystemExit: If there is nothing to train a probe on.
    """
    if not source.is_dir():
        sys.exit(f'There is no folder "{source}" (DATA).')
    classes = sorted(entry for entry in source.iterdir() if entry.is_dir())
    if len(classes) < 2:
        sys.exit(f'"{source}" holds {len(classes)} class folders; the probe needs two or more.')
    for folder in classes:
        files = scan_images(folder)
        if len(files) < 2:
            sys.exit(f'The class folder "{folder}" holds {len(files)} images; training and validation need 2.')
        for i, path in enumerate(files):
            link = out / ('train' if i % 5 else 'val') / folder.name / f'{i:06d}{path.suffix}'
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def stretch_schedule(config: str, factor: int) -> dict:
    """Options for training ``factor`` times as many epochs with as many validations."""
    cfg = Config.fromfile(CONFIGS / config)
    options = epoch_options(cfg, cfg.train_cfg.max_epochs * factor)
    return options | {'train_cfg.val_interval': cfg.train_cfg.val_interval * factor}


def summarize(work_dir: Path, num_classes: int, seconds: dict[str, float]) -> dict:
    """All results, by stage."""
    masked = curve(work_dir / 'pretrain', 'reconstruction/masked_loss')
    return dict(
        pretrain=dict(
            loss_first=masked[0],
            loss_last=masked[-1],
            loss_constant=curve(work_dir / 'pretrain', 'reconstruction/constant_loss')[-1],
        ),
        linear_probe=dict(
            top1=curve(work_dir / 'probe', 'accuracy/top1')[-1],
            top1_random_backbone=curve(work_dir / 'probe_random', 'accuracy/top1')[-1],
            top1_chance=100 / num_classes,
        ),
        detection={key: curve(work_dir / 'detection', f'coco/{key}')[-1] for key in ('bbox_mAP', 'bbox_mAP_50')},
        seconds=seconds,
    )


def main() -> None:
    """Run all stages."""
    args = parse_args()
    work_dir = args.work_dir.resolve()
    if work_dir == WORK_DIR.resolve():
        shutil.rmtree(work_dir, ignore_errors=True)

    print('== data: crops of the photographs that scikit-image bundles', flush=True)
    images = work_dir / 'data'
    make_demo_data(images)
    if args.data:
        images = work_dir / 'own_images'
        split_folder(args.data, images)
    num_classes = len(list((images / 'train').iterdir()))
    stretch = max(1, round(OWN_TRAIN / len(list((images / 'train').glob('*/*')))))
    seconds = {}

    def run(name: str, config: str, options: dict, data: Path = images) -> None:
        if data == images and stretch > 1:
            options = options | stretch_schedule(config, stretch)
        seconds[name] = train(name, config, work_dir, data, options)

    pretraining = 'qbheat_mobile-former-52m_demo.py'
    run('pretrain', pretraining, {})
    checkpoint = (work_dir / 'pretrain' / 'last_checkpoint').read_text().strip()
    backbone = {'model.backbone.init_cfg.checkpoint': checkpoint}
    classes = {'model.head.num_classes': num_classes, 'model.data_preprocessor.num_classes': num_classes}
    run('probe', 'linear_mobile-former-52m_demo.py', backbone | classes)
    run('probe_random', 'linear_mobile-former-52m-random_demo.py', classes)
    run('detection', 'dino_mobile-former-52m-frozen-whitened_demo.py', backbone, work_dir / 'data')

    samples = [sorted(folder.iterdir())[-1] for folder in sorted((images / 'val').iterdir())[:8]]
    reconstructions = QBHeatInferencer(str(CONFIGS / pretraining), checkpoint, device='cpu').reconstruct(samples)
    content = io.BytesIO()
    draw_reconstructions(reconstructions, rows=(len(samples) + 1) // 2).save(content, 'PNG')
    atomic_write(work_dir / 'reconstruction.png', content.getvalue())
    summary = summarize(work_dir, num_classes, seconds)
    atomic_write(work_dir / 'summary.json', (json.dumps(summary, indent=2) + '\n').encode())
    print()
    for stage, results in summary.items():
        for key, value in results.items():
            print(f'{stage:<16}{key:<24}{value:>8.3f}')
    print(f'\nwrote {work_dir}/summary.json and {work_dir}/reconstruction.png')


if __name__ == '__main__':
    main()
