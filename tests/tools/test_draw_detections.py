import sys

import mmcv
import numpy as np
import pytest
import torch
from helpers.coco import TINY_DETR
from mmengine.config import Config
from mmengine.registry import init_default_scope

import qbheat_mm  # noqa: F401
from qbheat_mm.checkpoint import CheckpointError

pytest.importorskip('mmdet')
from mmdet.registry import MODELS

CONFIG = """
default_scope = 'mmdet'
model = {model}
test_dataloader = dict(dataset=dict(
    type='CocoDataset', data_root='{root}', ann_file='annotations/instances_val.json', data_prefix=dict(img='images'),
    metainfo=dict(classes=('cat', 'dog')), test_mode=True,
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),  # behind the annotations: the boxes are scaled too
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ],
))
"""


@pytest.fixture
def draw(load_tool, make_coco, tmp_path, monkeypatch):
    """Run the tool on a tiny DETR; returns the halves of the first image and the truth of it."""
    _, _, content = make_coco('val', num_images=5, size=(192, 128))
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(root=tmp_path, model=TINY_DETR))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'weights.pth')
    main = load_tool('analysis_tools/draw_detections.py').main

    def run(*args, checkpoint='weights.pth'):
        out = tmp_path / 'out'
        command = ['draw_detections.py', str(config), str(tmp_path / checkpoint), '--out', str(out), *args]
        monkeypatch.setattr(sys, 'argv', command)
        main()
        files = sorted(out.iterdir())
        image = mmcv.imread(str(files[0])).astype(int)
        half = image.shape[1] // 2
        return files, image[:, :half], image[:, half:], content

    return run


def test_truth_on_the_left_detections_on_the_right(draw):
    files, truth, nothing, content = draw('--score-thr', '1', '--count', '2')
    assert [path.name for path in files] == ['val_0_100.jpg', 'val_2_102.jpg']
    assert truth.shape == nothing.shape == (128, 192, 3)
    changed = np.abs(truth - nothing).max(2) > 40
    x, y, w, h = (round(v) for v in content['annotations'][0]['bbox'])
    middle = slice(y + h // 4, y + 3 * h // 4)
    for edge in (x, x + w):  # the truth is where the file says, although the pipeline scaled it
        assert changed[middle, edge - 1 : edge + 2].any(1).mean() > 0.9

    _, same_truth, detections, _ = draw('--score-thr', '0', '--count', '2')
    assert np.array_equal(truth, same_truth)
    assert (np.abs(detections - nothing).max(2) > 40).sum() > 100


def test_a_checkpoint_that_does_not_fit_or_is_unsafe_is_refused(draw, tmp_path):
    with pytest.raises(CheckpointError, match=r'bbox_head\.fc_cls\.weight \(3, 16\) where DETR has \(8, 16\)'):
        draw('--cfg-options', 'model.bbox_head.num_classes=7')
    with pytest.raises(CheckpointError, match=r'lost\.pth'):
        draw(checkpoint='lost.pth')
    torch.save(dict(state_dict=print), tmp_path / 'unsafe.pth')
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        draw(checkpoint='unsafe.pth')
