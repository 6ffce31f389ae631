"""Evaluate a checkpoint with any config of this project, or any other of MMPretrain and MMDetection.

For a detector the log, and the file of --out, hold COCO's twelve figures and the AP of each class. Its detections are
written in COCO's results format to <work dir>/detections.bbox.json, or --cfg-options test_evaluator.outfile_prefix=...
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from qbheat_mm_cli import add_run_arguments, config_file, home_path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=config_file, help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', type=home_path, help='write the metrics (.json) or, with --out-item pred, the predictions (.pkl) here'
    )
    parser.add_argument('--out-item', choices=['metrics', 'pred'], default='metrics')
    parser.add_argument('--amp', action='store_true', help='test in mixed precision')
    parser.add_argument(
        '--show-dir', type=home_path, help='draw predictions into this folder, with the sub-folders of the data'
    )
    parser.add_argument('--interval', type=int, default=1, help='draw every n-th image')
    return add_run_arguments(parser).parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import mmengine
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from qbheat_mm.checkpoint import atomic_write
from qbheat_mm.engine.launch import build_runner, complete_config


def keep_detections(cfg: Config) -> None:
    """Write detections to <work dir>/detections.bbox.json, unless the config names a place."""
    evaluators = cfg.get('test_evaluator') or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if evaluator.get('type') == 'CocoBBoxMetric' and not evaluator.get('outfile_prefix'):
            evaluator.outfile_prefix = str(Path(cfg.work_dir) / 'detections')


def apply_args(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the arguments of this tool alone."""
    cfg.load_from, cfg.resume = args.checkpoint, False  # what a training would resume has no part in a test
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show_dir:
        args.show_dir = str(Path(args.show_dir).absolute())  # mmdet takes a relative one as below the work dir
        cfg.default_hooks.visualization.update(interval=args.interval)
        if cfg.get('default_scope') == 'mmdet':
            cfg.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
        else:
            cfg.default_hooks.visualization.update(enable=True, out_dir=args.show_dir)


def keep_folders(runner: Runner, show_dir: str) -> None:
    """Draw images into the sub-folders of ``show_dir`` that they have in the data, since names may occur in several."""
    dataset = runner.test_dataloader.dataset
    parents = [os.path.dirname(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
    root = os.path.commonpath(parents)
    method = 'add_datasample' if runner.default_scope.scope_name == 'mmdet' else 'visualize_cls'
    draw = getattr(runner.visualizer, method)

    def draw_below(*args, data_sample, out_file=None, **kwargs) -> None:
        if out_file and 'img_path' in data_sample:
            folder = os.path.relpath(os.path.dirname(data_sample.img_path), root)
            out_file = str(Path(show_dir, folder, os.path.basename(out_file)))
        draw(*args, data_sample=data_sample, out_file=out_file, **kwargs)

    setattr(runner.visualizer, method, draw_below)


def main() -> None:
    """Build the runner and test."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    apply_args(cfg, args)
    complete_config(cfg, args)
    keep_detections(cfg)
    runner = build_runner(cfg)
    if args.show_dir:
        keep_folders(runner, args.show_dir)
    if args.out and args.out_item == 'pred':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out and args.out_item == 'metrics':
        atomic_write(args.out, mmengine.dump(metrics, file_format='json').encode())


if __name__ == '__main__':
    main()
