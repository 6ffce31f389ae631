"""Evaluate the frozen features of a backbone by k-NN classification, without training.

    python tools/analysis_tools/knn_eval.py CONFIG CHECKPOINT

CONFIG is the config of a probe, with its backbone and its labeled data: the neighbors are training images, loaded
with the validation pipeline. CHECKPOINT is any file with such a backbone, or the word "random" for the control:
random weights with BatchNorm statistics of the training images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qbheat_mm_cli import add_cfg_options, add_trust, config_file


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=config_file, help='a config of a probe')
    parser.add_argument('checkpoint', help='weights with a backbone, or "random"')
    add_trust(parser)
    parser.add_argument('--k', type=int, nargs='+', default=[20, 200], help='numbers of neighbors (%(default)s)')
    parser.add_argument('--temperature', type=float, default=0.07, help='of the votes (%(default)s)')
    parser.add_argument('--out', type=Path, help='also write the accuracies to this JSON file')
    parser.add_argument('--device', help='device of the network; default: the GPU where there is one')
    parser.add_argument('--num-workers', type=int, help="processes that read images; default: the config's")
    parser.add_argument('--seed', type=int, default=0, help='of random weights (%(default)s)')
    add_cfg_options(parser)
    return parser.parse_args(arguments)


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

import qbheat_mm  # noqa: F401, registers the models
from qbheat_mm.checkpoint import CheckpointError, atomic_write, guard
from qbheat_mm.datasets.config_validation import check_classes
from qbheat_mm.engine.launch import merge_options
from qbheat_mm.evaluation.functional.features import build_encoder, calibrate_batch_norm
from qbheat_mm.evaluation.functional.knn import collect_features, knn_accuracy


def build_loaders(cfg: Config, num_workers: int | None) -> tuple[DataLoader, DataLoader]:
    """Build loaders of the training and the validation images, both in order and without augmentation."""
    loaders = []
    for name in ('train_dataloader', 'val_dataloader'):
        if not cfg.get(name):
            raise ValueError(f'The config has no {name}; name a probe, whose data have labels.')
        dataset = dict(cfg[name].dataset, pipeline=cfg.val_dataloader.dataset.pipeline, test_mode=True)
        loader = dict(cfg.val_dataloader, dataset=dataset)
        if num_workers is not None:
            loader['num_workers'] = num_workers
        if not loader.get('num_workers'):
            loader['persistent_workers'] = False
        loaders.append(Runner.build_dataloader(loader, seed=0))
    check_classes(*(loader.dataset for loader in loaders))
    return tuple(loaders)


def main(arguments: Sequence[str] | None = None) -> None:
    """Extract, classify, print."""
    args = parse_args(arguments)
    device = args.device or get_device()
    MMLogger.get_instance('knn', log_level='WARNING')
    init_default_scope('mmpretrain')
    try:
        cfg = Config.fromfile(args.config)
        merge_options(cfg, args.cfg_options)
        loaders = build_loaders(cfg, args.num_workers)
        if args.checkpoint == 'random':
            model = build_encoder(cfg, seed=args.seed).to(device)
            bank = loaders[0]
            # Shuffled, so that the BatchNorm statistics are of all classes.
            shuffled = DataLoader(bank.dataset, bank.batch_size, shuffle=True, collate_fn=bank.collate_fn)
            calibrate_batch_norm(model, shuffled, num_samples=2048)
        else:
            model = build_encoder(cfg, guard(args.checkpoint, args.trust_checkpoint)).to(device)
        bank, queries = (collect_features(model, loader) for loader in loaders)
        accuracy = knn_accuracy(queries, bank, args.k, args.temperature)
    except (CheckpointError, FileNotFoundError, RuntimeError, ValueError) as error:
        sys.exit(f'knn: {str(error).strip().splitlines()[-1]}')
    print(f'{len(bank[0])} images as neighbors, {len(queries[0])} classified, {bank[0].shape[1]} channels')
    for name, value in accuracy.items():
        print(f'{name}: {value:.2f} %')
    if args.out:
        report = dict(config=args.config, checkpoint=args.checkpoint, temperature=args.temperature) | accuracy
        atomic_write(args.out, json.dumps(report, indent=2).encode())


if __name__ == '__main__':
    main()
