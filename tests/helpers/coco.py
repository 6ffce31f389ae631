"""A small dataset in COCO's format, and a tiny DETR."""

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


@pytest.fixture
def make_coco(tmp_path):
    """Write a small dataset in COCO's format: random images with a box of each class."""

    def make(
        name: str = 'train',
        num_images: int = 4,
        size: tuple[int, int] = (96, 64),
        classes: tuple[str, ...] = ('cat', 'dog'),
        root: Path = tmp_path,
    ) -> tuple[Path, Path, dict]:
        """The annotation file, the folder of images, and the content of the file."""
        generator = np.random.default_rng(0)
        ann_file, img_dir = root / 'annotations' / f'instances_{name}.json', root / 'images'
        ann_file.parent.mkdir(parents=True, exist_ok=True)
        img_dir.mkdir(exist_ok=True)
        width, height = size
        content = dict(images=[], annotations=[], categories=[])
        # ids neither in order nor without gaps, as in the released COCO
        content['categories'] = [dict(id=10 - 3 * i, name=class_) for i, class_ in enumerate(classes)]
        for i in range(num_images):
            image = dict(id=100 + i, file_name=f'{name}_{i}.png', width=width, height=height)
            content['images'].append(image)
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(img_dir / image['file_name'])
            for category in content['categories']:
                w, h = (float(v) for v in generator.uniform(10, min(size) / 2, 2))
                box = [float(generator.uniform(0, width - w)), float(generator.uniform(0, height - h)), w, h]
                content['annotations'].append(
                    dict(
                        id=len(content['annotations']) + 1,
                        image_id=image['id'],
                        category_id=category['id'],
                        bbox=box,
                        area=w * h,
                        iscrowd=0,
                    )
                )
        ann_file.write_text(json.dumps(content))
        return ann_file, img_dir, content

    return make
