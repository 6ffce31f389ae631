"""Generated data in the layout of the released COCO, with what makes trouble in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

# The 80 categories' ids run to 90.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# name: (mode of the image, boxes (x, y, w, h) in parts of 1,000 of the side, whether they are a crowd)
IMAGES = {
    '1.jpg': ('RGB', [(100, 200, 400, 300), (500, 500, 400, 400)], False),
    '2.jpg': ('RGB', [], False),
    '3.jpg': ('RGB', [(0, 0, 1000, 1000)], True),
    '4.jpg': ('L', [(300, 300, 500, 300)], False),
    '5.png': ('RGBA', [(200, 300, 300, 500)], False),
    '6.jpg': ('RGB', [(500, 500, 0, 0), (100, 100, 500, 500)], False),  # the first: a single pixel
}


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]


def class_names() -> tuple[str, ...]:
    """COCO's 80 classes."""
    from mmdet.datasets import CocoDataset

    return CocoDataset.METAINFO['classes']


def annotations(size: int) -> list[dict]:
    """The boxes of ``IMAGES`` with the ids, areas and outlines that COCO writes; three categories occur."""
    boxes = []
    for image_id, (_, parts, crowd) in enumerate(IMAGES.values(), 1):
        for i, part in enumerate(parts):
            x, y, w, h = (max(value * size / 1000, (0, 0, 1, 1)[j]) for j, value in enumerate(part))
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=image_id,
                    category_id=(1, 18, 90)[i],
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=int(crowd),
                    segmentation=dict(counts=[0, size * size], size=[size, size]) if crowd else outline,
                )
            )
    return boxes


def write_coco(root: Path, size: int = 256, people320: bool = False) -> Path:
    """Write ``IMAGES`` for training and validation.

    Args:
        root: A new folder.
        size: Side of a image in pixels.
        people320: One folder of images, as in the small dataset, instead of COCO's own two.
    """
    rng = np.random.default_rng(0)
    ids = [i for i in range(1, 91) if i not in GAPS]
    categories = [dict(supercategory='any', id=i, name=name) for i, name in zip(ids, class_names(), strict=True)]
    (root / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        folder = root / ('images' if people320 else f'{split}2017')
        folder.mkdir(exist_ok=True)
        images = []
        for i, (name, (mode, _, _)) in enumerate(IMAGES.items(), 1):
            pixels = rng.integers(0, 256, (8, 8, len(mode)), dtype=np.uint8).squeeze()
            file_name = f'{split}_{name}'
            Image.fromarray(pixels, mode).resize((size, size), Image.Resampling.BICUBIC).save(folder / file_name)
            images.append(dict(id=i, file_name=file_name, width=size, height=size, license=1))
        content = dict(info={}, licenses=[], images=images, annotations=annotations(size), categories=categories)
        suffix = '' if people320 else '2017'
        (root / 'annotations' / f'instances_{split}{suffix}.json').write_text(json.dumps(content))
    return root
