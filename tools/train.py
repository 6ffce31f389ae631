"""Train with any config of this project, or any other of MMPretrain and MMDetection."""

from __future__ import annotations

import argparse

from qbheat_mm_cli import add_run_arguments, config_file, home_path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=config_file, help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or without one from the last in the work dir',
    )
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
        type=home_path,
        metavar='FOLDER',
        help='a probe on frozen features without augmentation: compute them once and keep them in FOLDER',
    )
    return add_run_arguments(parser).parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from mmengine.config import Config

from qbheat_mm.engine.feature_cache import cache_features
from qbheat_mm.engine.launch import build_runner, check_batches, claim_work_dir, complete_config, train


def apply_args(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the arguments of this tool alone."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        cfg.setdefault('auto_scale_lr', {}).enable = True


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    apply_args(cfg, args)
    complete_config(cfg, args)
    claim_work_dir(cfg)
    if args.cache_features:
        cache_features(cfg, args.cache_features)
    runner = build_runner(cfg)
    check_batches(runner)
    train(runner)


if __name__ == '__main__':
    main()
