"""Evaluate a checkpoint with any config of this project, or any other of MMPretrain and MMDetection.

A detector gives COCO's twelve figures and the AP of each class, in the log and with --out in a file, and its
detections in COCO's results format: <work dir>/detections.bbox.json, or --cfg-options test_evaluator.outfile_prefix=...
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import mmengine
from mmengine.config import Config, DictAction
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from qbheat_mm.checkpoint import TRUST_HELP
from qbheat_mm.engine.launch import adapt_to_device, complete_dataloaders, prepare_hooks, init_process_group_on_cpu


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where metrics and logs go; default work_dirs/<name of the config>')
    parser.add_argument('--out', help='write the metrics (.json) or, with --out-item pred, the predictions (.pkl) here')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], default='metrics')
    parser.add_argument('--trust-checkpoint', action='store_true', help=TRUST_HELP)
    parser.add_argument('--amp', action='store_true', help='test in mixed precision')
    parser.add_argument('--show-dir', help='draw predictions into this folder')
    parser.add_argument('--interval', type=int, default=1, help='draw every n-th image')
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in the dataloaders')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override fields of the config'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def keep_detections(cfg: Config) -> None:
    """Write detections to <work dir>/detections.bbox.json, unless the config names a place."""
    evaluators = cfg.get('test_evaluator') or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if evaluator.get('type') == 'CocoBBoxMetric' and not evaluator.get('outfile_prefix'):
            evaluator.outfile_prefix = str(Path(cfg.work_dir) / 'detections')


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Bring the command line into the config."""
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    cfg.load_from = args.checkpoint
    keep_detections(cfg)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show_dir:
        cfg.default_hooks.visualization.update(interval=args.interval)
        if cfg.get('default_scope') == 'mmdet':
            cfg.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
        else:
            cfg.default_hooks.visualization.update(enable=True, out_dir=args.show_dir)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    complete_dataloaders(cfg, not args.no_pin_memory)
    return cfg


def main() -> None:
    """Build the runner and test."""
    args = parse_args()
    cfg = merge_args(Config.fromfile(args.config), args)
    adapt_to_device(cfg)
    prepare_hooks(cfg, args.trust_checkpoint)
    init_process_group_on_cpu(cfg.launcher)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if args.out and args.out_item == 'pred':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
