"""Generated datasets in COCO format, and a tiny DETR."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.models import TINY_ARCH

ATTENTION = dict(embed_dims=16, num_heads=2)
FEED_FORWARD = dict(embed_dims=16, feedforward_channels=16)
TINY_DETR = dict(
    type='DETR',
    num_queries=5,
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[123, 116, 103], std=[58, 57, 57], bgr_to_rgb=True),
    backbone=dict(type='mmpretrain.MobileFormer', arch=TINY_ARCH, out_indices=(2,)),
    neck=dict(type='ChannelMapper', in_channels=[16], kernel_size=1, out_channels=16, num_outs=1),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=ATTENTION, ffn_cfg=FEED_FORWARD)),
    decoder=dict(
        num_layers=1,
        return_intermediate=True,
        layer_cfg=dict(self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION, ffn_cfg=FEED_FORWARD),
    ),
    positional_encoding=dict(num_feats=8, normalize=True),
    bbox_head=dict(
        type='DETRHead',
        num_classes=2,
        embed_dims=16,
        # written out: mmdet changes its default argument when it builds the first head
        loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type='HungarianAssigner', match_costs=[dict(type='ClassificationCost', weight=1.0)]),
    ),
    test_cfg=dict(max_per_img=5),
)


# The layout of the released COCO: the ids of its 80 categories run to 90, and these are unused.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# name: (mode of the image, boxes (x, y, w, h) in 1/1,000 of the side, iscrowd)
IMAGES = {
    '1.jpg': ('RGB', [(100, 200, 400, 300), (500, 500, 400, 400)], 0),
    '2.jpg': ('RGB', [], 0),
    '3.jpg': ('RGB', [(0, 0, 1000, 1000)], 1),
    '4.jpg': ('L', [(300, 300, 500, 300)], 0),
    '5.png': ('RGBA', [(200, 300, 300, 500)], 0),
    '6.jpg': ('RGB', [(500, 500, 0, 0), (100, 100, 500, 500)], 0),  # the first: a single pixel
}


def coco_content(
    boxes: dict[str, list[tuple]], size: tuple[int, int], categories: dict[int, str], first_id: int = 1
) -> dict:
    """The content of an annotation file; ``boxes`` are (category id, (x, y, w, h), iscrowd) by file name."""
    images = [dict(id=i, file_name=name, width=size[0], height=size[1]) for i, name in enumerate(boxes, start=first_id)]
    flat = [(image['id'], *box) for image in images for box in boxes[image['file_name']]]
    annotations = [
        dict(id=i, image_id=image, category_id=category, bbox=list(box), area=box[2] * box[3], iscrowd=crowd)
        for i, (image, category, box, crowd) in enumerate(flat, start=1)
    ]
    return dict(
        images=images, annotations=annotations, categories=[dict(id=i, name=name) for i, name in categories.items()]
    )


def coco_dataset(root: Path, name: str = 'train', classes=('cat', 'dog'), **kwargs) -> dict:
    """The config of a dataset that ``make_coco`` wrote."""
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file=f'annotations/instances_{name}.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes),
        **kwargs,
    )


def detection_pipeline(size: int, flip: float | None = None) -> list[dict]:
    """Images and boxes, scaled to ``size`` after the annotations are loaded; with ``flip``, flipped before."""
    return [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        *([] if flip is None else [dict(type='RandomFlip', prob=flip)]),
        dict(type='Resize', scale=(size, size), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ]


@pytest.fixture
def make_coco(tmp_path):
    """Write random images with a box of each class."""

    def make(
        name: str = 'train',
        num_images: int = 4,
        size: tuple[int, int] = (96, 64),
        classes: tuple[str, ...] = ('cat', 'dog'),
    ) -> tuple[Path, Path, dict]:
        """The annotation file, the folder of images, and the content of the file."""
        rng = np.random.default_rng(0)
        ann_file, img_dir = tmp_path / 'annotations' / f'instances_{name}.json', tmp_path / 'images'
        ann_file.parent.mkdir(parents=True, exist_ok=True)
        img_dir.mkdir(exist_ok=True)
        # ids neither sorted nor without gaps, as in the released COCO
        categories, boxes = {10 - 3 * i: class_ for i, class_ in enumerate(classes)}, {}
        for file_name in (f'{name}_{i}.png' for i in range(num_images)):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(img_dir / file_name)
            boxes[file_name] = []
            for category in categories:
                w, h = (float(v) for v in rng.uniform(10, min(size) / 2, 2))
                box = (float(rng.uniform(0, size[0] - w)), float(rng.uniform(0, size[1] - h)), w, h)
                boxes[file_name].append((category, box, 0))
        content = coco_content(boxes, size, categories, first_id=100)
        ann_file.write_text(json.dumps(content))
        return ann_file, img_dir, content

    return make


def write_coco(root: Path, size: int = 256, people320: bool = False) -> Path:
    """Write ``IMAGES`` for training and validation.

    Args:
        root: A new folder.
        size: Side of an image in pixels.
        people320: One folder of images, as in the small dataset, instead of COCO's two.
    """
    from mmdet.datasets import CocoDataset

    rng = np.random.default_rng(0)
    ids = [i for i in range(1, 91) if i not in GAPS]
    categories = dict(zip(ids, CocoDataset.METAINFO['classes'], strict=True))
    (root / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        folder = root / ('images' if people320 else f'{split}2017')
        folder.mkdir(exist_ok=True)
        boxes = {}
        for name, (mode, parts, crowd) in IMAGES.items():
            pixels = rng.integers(0, 256, (8, 8, len(mode)), dtype=np.uint8).squeeze()
            image = Image.fromarray(pixels, mode).resize((size, size), Image.Resampling.BICUBIC)
            image.save(folder / f'{split}_{name}')
            scaled = [tuple(max(v * size / 1000, least) for v, least in zip(part, (0, 0, 1, 1))) for part in parts]
            boxes[f'{split}_{name}'] = [(category, box, crowd) for category, box in zip((1, 18, 90), scaled)]
        content = coco_content(boxes, (size, size), categories)
        for annotation in content['annotations']:
            x, y, w, h = annotation['bbox']
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            mask = dict(counts=[0, size * size], size=[size, size])
            annotation['segmentation'] = mask if annotation['iscrowd'] else outline
        suffix = '' if people320 else '2017'
        (root / 'annotations' / f'instances_{split}{suffix}.json').write_text(json.dumps(content))
    return root
