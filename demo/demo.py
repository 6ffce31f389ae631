"""The whole way in minutes: pre-train, probe, detect, every stage a config run by tools/train.py.

    python demo/demo.py [--data FOLDER_OF_CLASS_FOLDERS] [--work-dir work_dirs/demo]

Ends with a table, summary.json and reconstruction.png in the work dir.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'demo'
VAL_EVERY = 5  # of a user's own images every fifth is for validation
OWN_TRAIN = 1920  # the demo's own training images; fewer are seen for more epochs, so that as much is learned


@dataclass
class Stage:
    """One run of tools/train.py, and the curve it leaves."""

    name: str
    config: str
    work_dir: Path
    data: Path
    options: dict = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint, as mmengine names it."""
        return Path((self.work_dir / 'last_checkpoint').read_text().strip())

    def run(self) -> None:
        """Train, showing the lines of progress; the whole log lies in the work dir.

        Raises:
            SystemExit: If the run fails, after the end of its log.
        """
        command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(CONFIGS / self.config)]
        command += ['--work-dir', str(self.work_dir)]
        if self.options:
            command += ['--cfg-options', *(f'{key}={value}' for key, value in self.options.items())]
        print(f'\n== {self.name}: {self.config}', flush=True)
        self.work_dir.mkdir(parents=True)
        log = self.work_dir / 'train.log'
        env = dict(os.environ, DATA_ROOT=str(self.data), PYTHONUNBUFFERED='1')
        start = time.monotonic()
        with (
            log.open('w') as file,
            subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            for line in process.stdout:
                file.write(line)
                if 'Epoch(' in line or 'qbheat_mm:' in line or 'could not be read' in line:
                    print(line.rstrip().partition(' - INFO - ')[2] or line.rstrip(), flush=True)
        self.seconds = time.monotonic() - start
        if process.returncode:
            tail = ''.join(log.read_text().splitlines(keepends=True)[-30:])
            sys.exit(f'{tail}\nThe stage "{self.name}" failed; its whole log is {log}')

    def curve(self, key: str) -> list[float]:
        """The values of a metric over the run, from mmengine's scalars."""
        (scalars,) = self.work_dir.glob('*/vis_data/scalars.json')
        records = (json.loads(line) for line in scalars.read_text().splitlines())
        return [record[key] for record in records if key in record]


def split_folder(source: Path, out: Path) -> None:
    """Link a folder of class folders into ``out/train`` and ``out/val``.

    Raises:
        SystemExit: If there is nothing to train on.
    """
    from qbheat_mm.datasets.image_folder import scan_images

    if not source.is_dir():
        sys.exit(f'There is no folder "{source}" (DATA).')
    classes = sorted(entry for entry in source.iterdir() if entry.is_dir())
    for folder in classes:
        files = scan_images(folder)
        if len(files) < 2:
            sys.exit(f'The class folder "{folder}" holds {len(files)} images; training and validation need 2.')
        for i, path in enumerate(files):
            split = 'val' if i % VAL_EVERY == VAL_EVERY - 1 or (len(files) < VAL_EVERY and i == 0) else 'train'
            link = out / split / folder.name / f'{i:06d}{path.suffix}'
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    if len(classes) < 2:
        sys.exit(f'"{source}" holds {len(classes)} class folders; the probe needs two or more.')


def stretch_schedule(config: str, factor: int) -> dict:
    """Options that make a config train ``factor`` times as many epochs, and validate as often."""
    from mmengine.config import Config

    from qbheat_mm.engine.schedules import epoch_options

    cfg = Config.fromfile(CONFIGS / config)
    return epoch_options(cfg, cfg.train_cfg.max_epochs * factor) | {
        'train_cfg.val_interval': cfg.train_cfg.val_interval * factor
    }


def draw_reconstruction(pretrain: Stage, out: Path) -> None:
    """Reconstruct validation images of every class with the trained model."""
    from qbheat_mm.apis import QBHeatInferencer
    from qbheat_mm.visualization import draw_reconstructions

    folders = sorted((pretrain.data / 'val').iterdir())[:8]
    images = [sorted(folder.iterdir())[-1] for folder in folders]
    inferencer = QBHeatInferencer(str(CONFIGS / pretrain.config), str(pretrain.checkpoint), device='cpu')
    draw_reconstructions(inferencer.reconstruct(images), rows=(len(images) + 1) // 2).save(out)


def summarize(stages: dict[str, Stage], num_classes: int) -> dict:
    """Every figure, as measured."""
    masked = stages['pretrain'].curve('reconstruction/masked_loss')
    return dict(
        pretrain=dict(
            loss_first=masked[0],
            loss_last=masked[-1],
            loss_constant=stages['pretrain'].curve('reconstruction/constant_loss')[-1],
        ),
        linear_probe=dict(
            top1=stages['probe'].curve('accuracy/top1')[-1],
            top1_random_backbone=stages['probe_random'].curve('accuracy/top1')[-1],
            top1_chance=100 / num_classes,
        ),
        detection=dict(
            bbox_mAP=stages['detection'].curve('coco/bbox_mAP')[-1],
            bbox_mAP_50=stages['detection'].curve('coco/bbox_mAP_50')[-1],
        ),
        seconds={name: round(stage.seconds, 1) for name, stage in stages.items()},
    )


def print_table(summary: dict) -> None:
    """The summary, for people."""
    loss, probe, detection = summary['pretrain'], summary['linear_probe'], summary['detection']
    rows = (
        ('masked loss on validation images', f'{loss["loss_first"]:.3f} -> {loss["loss_last"]:.3f}'),
        ('  the best constant per patch', f'{loss["loss_constant"]:.3f}'),
        ('linear probe, top-1 %', f'{probe["top1"]:.1f}'),
        ('  on a random backbone', f'{probe["top1_random_backbone"]:.1f}'),
        ('  by chance', f'{probe["top1_chance"]:.1f}'),
        ('detection on the frozen backbone, COCO AP', f'{detection["bbox_mAP"]:.3f}'),
        ('  AP50', f'{detection["bbox_mAP_50"]:.3f}'),
        ('seconds', ', '.join(f'{name} {seconds:.0f}' for name, seconds in summary['seconds'].items())),
    )
    print()
    for label, value in rows:
        print(f'{label:<44}{value}')


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='your own images, in class folders, to pre-train and probe with')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='is emptied first')
    args = parser.parse_args()
    work_dir = args.work_dir.resolve()
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)

    print('== data: crops of the photographs that scikit-image bundles', flush=True)
    from make_data import make_demo_data

    make_demo_data(work_dir / 'data')
    images = work_dir / 'data'
    if args.data:
        images = work_dir / 'own_images'
        split_folder(args.data, images)
    num_classes = len(list((images / 'train').iterdir()))
    stretch = max(1, round(OWN_TRAIN / len(list((images / 'train').glob('*/*')))))

    stages: dict[str, Stage] = {}

    def run(name: str, config: str, data: Path, **options) -> None:
        options = {key.replace('__', '.'): value for key, value in options.items()}
        if data == images and stretch > 1:
            options |= stretch_schedule(config, stretch)
        stages[name] = Stage(name, config, work_dir / name, data, options)
        stages[name].run()

    run('pretrain', 'qbheat_mobile-former-52m_demo.py', images)
    backbone = stages['pretrain'].checkpoint
    classes = dict(model__head__num_classes=num_classes, model__data_preprocessor__num_classes=num_classes)
    run(
        'probe',
        'linear_mobile-former-52m_demo.py',
        images,
        model__backbone__init_cfg__checkpoint=backbone,
        **classes,
    )
    run('probe_random', 'linear_mobile-former-52m-random_demo.py', images, **classes)
    run(
        'detection',
        'dino_mobile-former-52m-frozen-whitened_demo.py',
        work_dir / 'data',
        model__backbone__init_cfg__checkpoint=backbone,
    )

    draw_reconstruction(stages['pretrain'], work_dir / 'reconstruction.png')
    summary = summarize(stages, num_classes)
    (work_dir / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    print_table(summary)
    print(f'\nwrote {work_dir}/summary.json and {work_dir}/reconstruction.png')


if __name__ == '__main__':
    main()
