"""A small data set in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_coco(tmp_path):
    """Write a small data set in COCO's format: random pictures with a box of each class."""

    def make(
        name: str = 'train',
        num_images: int = 4,
        size: tuple[int, int] = (96, 64),
        classes: tuple[str, ...] = ('cat', 'dog'),
        root: Path = tmp_path,
    ) -> tuple[Path, Path, dict]:
        """The annotation file, the folder of pictures, and the content of the file."""
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
