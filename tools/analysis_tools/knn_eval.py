"""k-NN accuracy of a backbone's frozen features: no training, minutes.

    python tools/analysis_tools/knn_eval.py CONFIG CHECKPOINT

CONFIG is a probe's, for its backbone and its labeled data: neighbors are looked up in the training images, seen
through the validation pipeline. CHECKPOINT is any file with such a backbone, or the word "random": random weights
with BatchNorm statistics of the training images, the control.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils.data import DataLoader

import qbheat_mm  # noqa: F401, registers the models
from qbheat_mm.checkpoint import TRUST_HELP, CheckpointError, guard, load_pretrained
from qbheat_mm.datasets.config_validation import check_classes
from qbheat_mm.engine.hooks.calibrate_bn_hook import calibrate_batch_norm
from qbheat_mm.evaluation.functional.knn import extract_features, knn_accuracy


def build_loaders(cfg: Config, num_workers: int | None) -> tuple[DataLoader, DataLoader]:
    """Loaders of the training and of the validation images, both in order and without augmentation."""
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


def build_model(cfg: Config, checkpoint: str, loader: DataLoader, device: str, seed: int) -> nn.Module:
    """The config's model with the checkpoint's backbone, in eval mode."""
    torch.manual_seed(seed)
    cfg.model.backbone.pop('init_cfg', None)
    model = MODELS.build(cfg.model).to(device)
    if checkpoint != 'random':
        load_pretrained(model.backbone, checkpoint, 'backbone.')
        return model.eval()
    model.backbone.init_weights()
    model.eval()
    calibrate_batch_norm(model, loader, num_samples=2048, logger='silent')
    return model.eval()


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config of a probe')
    parser.add_argument('checkpoint', help='weights with a backbone, or "random"')
    parser.add_argument('--trust-checkpoint', action='store_true', help=TRUST_HELP)
    parser.add_argument('--k', type=int, nargs='+', default=[20, 200], help='numbers of neighbors (%(default)s)')
    parser.add_argument('--temperature', type=float, default=0.07, help='of the votes (%(default)s)')
    parser.add_argument('--out', type=Path, help='also write the accuracies to this JSON file')
    parser.add_argument('--device', default=get_device(), help='where the network runs (%(default)s)')
    parser.add_argument('--num-workers', type=int, help="processes that read images; default: the config's")
    parser.add_argument('--seed', type=int, default=0, help='of random weights (%(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override the config')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Extract, classify, print."""
    args = parse_args(arguments)
    MMLogger.get_instance('knn', log_level='WARNING')
    init_default_scope('mmpretrain')
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options or {})
        loaders = build_loaders(cfg, args.num_workers)
        # Random weights take their BatchNorm statistics from images of every class.
        shuffled = DataLoader(
            loaders[0].dataset, batch_size=loaders[0].batch_size, shuffle=True, collate_fn=loaders[0].collate_fn
        )
        checkpoint = args.checkpoint if args.checkpoint == 'random' else guard(args.checkpoint, args.trust_checkpoint)
        model = build_model(cfg, checkpoint, shuffled, args.device, args.seed)
        bank, queries = (extract_features(model, loader) for loader in loaders)
        accuracy = knn_accuracy(queries, bank, args.k, args.temperature)
    except (CheckpointError, FileNotFoundError, RuntimeError, ValueError) as error:
        sys.exit(f'knn: {str(error).strip().splitlines()[-1]}')
    print(f'{len(bank[0])} images as neighbors, {len(queries[0])} classified, {bank[0].shape[1]} channels')
    for name, value in accuracy.items():
        print(f'{name}: {value:.2f} %')
    if args.out:
        report = dict(config=args.config, checkpoint=args.checkpoint, temperature=args.temperature) | accuracy
        args.out.write_text(json.dumps(report, indent=2))


if __name__ == '__main__':
    main()
