"""Draw what a checkpoint detects on images of a config's test set: the truth on the left, detections on the right."""

from __future__ import annotations

import argparse
from pathlib import Path

from qbheat_mm_cli import add_cfg_options, add_trust, config_file


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=config_file, help='a detection config')
    parser.add_argument('checkpoint', help="the detector's weights")
    add_trust(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the images')
    parser.add_argument('--count', type=int, default=20, help='how many images, spread evenly over the test set')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections scored lower')
    add_cfg_options(parser)
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

from qbheat_mm.checkpoint import guard, load_pretrained  # before mmdet, which may need its patches
from qbheat_mm.engine.launch import merge_options

# isort: split
import mmcv
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress


def read_truth(dataset, index: int) -> InstanceData:
    """Boxes (N, 4), corners in pixels of the image itself, and labels (N,), whatever the pipeline does to them."""
    instances = dataset.get_data_info(index)['instances']
    return InstanceData(
        bboxes=torch.tensor([instance['bbox'] for instance in instances], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([instance['bbox_label'] for instance in instances], dtype=torch.long),
    )


@torch.no_grad()
def draw_detections(
    cfg: Config, checkpoint: str | Path, out: str | Path, count: int = 20, score_thr: float = 0.3
) -> list[Path]:
    """Draw images spread evenly over the test set.

    Args:
        cfg: A detection config.
        checkpoint: The detector's weights; every key must fit.
        out: Folder for the images.
        count: How many.
        score_thr: Detections scored lower are left out.

    Returns:
        The files.

    Raises:
        CheckpointError: If the checkpoint is unreadable, unsafe or does not fit the model.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    load_pretrained(model, checkpoint)
    model = model.to(get_device()).eval()
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    visualizer = DetLocalVisualizer()
    enough_colors = len(dataset.metainfo.get('palette', ())) >= len(dataset.metainfo['classes'])
    visualizer.dataset_meta = dataset.metainfo if enough_colors else {**dataset.metainfo, 'palette': 'random'}

    count, files = min(count, len(dataset)), []
    for index in track_iter_progress([i * len(dataset) // count for i in range(count)]):
        sample = model.test_step(pseudo_collate([dataset[index]]))[0]
        sample.gt_instances = read_truth(dataset, index)
        files.append(Path(out) / f'{Path(sample.img_path).stem}_{sample.img_id}.jpg')
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        visualizer.add_datasample('', image, sample, out_file=str(files[-1]), pred_score_thr=score_thr)
    return files


def main() -> None:
    """Draw as the command line says."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options)
    files = draw_detections(cfg, guard(args.checkpoint, args.trust_checkpoint), args.out, args.count, args.score_thr)
    print(f'{len(files)} images in {args.out}')


if __name__ == '__main__':
    main()
