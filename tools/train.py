"""Train with any config of this project, or any other of MMPretrain and MMDetection."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from qbheat_mm.checkpoint import TRUST_HELP
from qbheat_mm.engine.feature_cache import cache_features
from qbheat_mm.engine.launch import (
    adapt_to_device,
    check_batches,
    complete_dataloaders,
    prepare_hooks,
    init_process_group_on_cpu,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go; default work_dirs/<name of the config>')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT, or without one from the last in the work dir',
    )
    parser.add_argument('--trust-checkpoint', action='store_true', help=TRUST_HELP)
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: bfloat16 where the device has it, float16 with dynamic scaling otherwise',
    )
    parser.add_argument('--no-validate', action='store_true', help='no validation during training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's batch size to this run's",
    )
    parser.add_argument(
        '--cache-features',
        metavar='FOLDER',
        help='a probe on frozen features without augmentation: compute them once and keep them in FOLDER',
    )
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in the dataloaders')
    parser.add_argument('--no-persistent-workers', action='store_true', help='new workers each epoch')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override fields of the config, e.g. optim_wrapper.optimizer.lr=1e-3',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Bring the command line into the config."""
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        cfg.setdefault('auto_scale_lr', {}).enable = True
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    complete_dataloaders(cfg, not args.no_pin_memory, not args.no_persistent_workers)
    return cfg


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    cfg = merge_args(Config.fromfile(args.config), args)
    adapt_to_device(cfg)
    prepare_hooks(cfg, args.trust_checkpoint)
    if args.cache_features:
        cache_features(cfg, args.cache_features)
    init_process_group_on_cpu(cfg.launcher)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    check_batches(runner)
    runner.train()


if __name__ == '__main__':
    main()
