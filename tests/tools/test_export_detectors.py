"""Exported detectors find the boxes that MMDetection finds."""

import copy
import json
import math

import pytest
import torch
from helpers.deployment import FORMATS, reload, run_tool
from helpers.models import ROOT, TINY_ARCH, write_images
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from qbheat_mm.models.necks.whitening import WhiteningLayer

mmdet = pytest.importorskip('mmdet')
from mmdet.registry import MODELS  # noqa: E402

CLASSES = ('cat', 'dog')
SIZE = 128
DETR = 'conditional-detr_mobile-former-285m-frozen_8xb2-50e_coco'
DENSE = 'fcos_mobile-former-285m-frozen_8xb2-12e_coco'
PREDICTING = ('cls', 'reg', 'obj', 'centerness')  # in the names of the layers that predict


def different_models() -> list[str]:
    """One of the detection configs for each model, apart from what training freezes and the number of classes."""
    found = {}
    for path in sorted((ROOT / 'configs/detection').glob('*.py')):
        model = Config.fromfile(path).model.to_dict()
        for field in ('frozen_stages', 'norm_eval', 'init_cfg', 'norm_cfg'):
            model['backbone'].pop(field, None)
        heads = [model.get('bbox_head'), model.get('roi_head', {}).get('bbox_head')]
        for head in filter(None, heads):
            head.pop('num_classes')
        found.setdefault(json.dumps(model, sort_keys=True, default=str), path.stem)
    return list(found.values())


def small(name: str) -> Config:
    """A detection config on the tiny backbone, with two classes and one layer of each transformer."""
    cfg = Config.fromfile(ROOT / f'configs/detection/{name}.py')
    model = cfg.model
    last = model.neck.num_outs == 1
    model.backbone.update(arch=TINY_ARCH, out_indices=(2,) if last else (1, 2), frozen_stages=-1)
    model.neck.in_channels = [16] if last else [12, 16]
    model.bbox_head.num_classes = 2
    for part in ('encoder', 'decoder'):
        if part in model:
            model[part].num_layers = 1
    if 'encoder' in model:
        model.update(num_queries=20, test_cfg=dict(max_per_img=10))
    else:
        model.neck.out_channels = model.bbox_head.in_channels = model.bbox_head.feat_channels = 64
        model.bbox_head.stacked_convs = 1
    return cfg


def write(folder, cfg: Config) -> list[str]:
    """The config and a checkpoint whose random weights find boxes of many scores, in many places."""
    torch.manual_seed(0)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(copy.deepcopy(cfg.model))  # which writes into it
        model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # which else does nothing
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, WhiteningLayer):
            module.set_identity()
    for name, parameter in model.named_parameters():
        if name.startswith('backbone.'):
            continue
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
        elif name.startswith('query_embedding'):  # else all queries find the same
            nn.init.normal_(parameter, std=3.0)
        elif name.startswith('decoder') and parameter.ndim == 2:
            nn.init.normal_(parameter, std=3 / math.sqrt(parameter.shape[1]))
        if any(part in name.rpartition('.')[0] for part in PREDICTING):
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.5 / math.sqrt(parameter[0].numel()))
            elif any(part in name for part in ('_cls.', 'cls_branches', '_obj')):
                nn.init.constant_(parameter, -1.0)
    folder.mkdir(exist_ok=True)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'model.pth')
    Config(dict(model=cfg.model, default_scope='mmdet')).dump(folder / 'config.py')
    return [str(folder / 'config.py'), str(folder / 'model.pth')]


@pytest.fixture
def tool(load_tool):
    return load_tool('deployment/export.py')


@pytest.fixture
def detectors(load_tool):
    return load_tool('deployment/_detectors.py')


@pytest.mark.parametrize('name', [DETR, DENSE])
@pytest.mark.parametrize('format', FORMATS)
def test_boxes_are_those_of_mmdetection(tool, tmp_path, name, format):
    files = write(tmp_path / 'detector', small(name))
    write_images(tmp_path / 'images', 2, size=100)
    out = tmp_path / f'model.{format}'
    options = ['--to', format, '--out', out, '--size', SIZE, '--images', tmp_path / 'images']
    assert run_tool(tool, *files, *options) <= 0.1
    run, metadata = reload(out, format)
    assert metadata['outputs'] == ['boxes', 'scores', 'labels']
    assert (metadata['classes'], metadata['batch_size'], metadata['size']) == (list(CLASSES), 1, [SIZE, SIZE])
    boxes, scores, labels = run(torch.randn(1, 3, SIZE, SIZE))
    assert 0 < len(boxes) == len(scores) == len(labels)
    assert scores.diff().le(0).all()
    assert set(labels.tolist()) <= {0, 1}
    assert 0 <= boxes.min() < boxes.max() <= SIZE


@pytest.mark.slow
@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('name', different_models())
def test_every_detector_exports(tool, tmp_path, name, format):
    cfg = Config.fromfile(ROOT / f'configs/detection/{name}.py')
    size = 256 if 'dino' in name else SIZE  # DINO's queries need as many positions
    files = write(tmp_path / 'detector', cfg)
    assert run_tool(tool, *files, '--to', format, '--out', tmp_path / 'model', '--size', size) <= 0.1


@pytest.mark.parametrize('format', FORMATS)
def test_an_image_may_have_no_box(tool, tmp_path, format):
    """The number of boxes is not that of the image that was exported with."""
    files = write(tmp_path / 'detector', small(DENSE))
    model, metadata = tool.build(tool.parse_args([*files, '--to', format, '--out', 'model', '--size', str(SIZE)]))
    images = [torch.full((1, 3, SIZE, SIZE), value) for value in (-1.0, 0.0, 1.0)]
    for threshold in torch.arange(0.05, 1, 0.05).tolist():
        model.model.detector.bbox_head.test_cfg.score_thr = threshold
        counts = [len(model.reference(image)[0]) for image in images]
        if 0 in counts:
            break
    assert max(counts) > 0
    run, _ = tool.load(tool.export(model, metadata, format))
    assert [len(run(image)[0]) for image in images] == counts


def test_boxes_are_in_pixels_of_the_image_before_resizing(tool, tmp_path):
    files = write(tmp_path / 'detector', small(DENSE))
    for name, options in dict(fixed=[], resizing=['--resize']).items():
        run_tool(tool, *files, '--to', 'torchscript', '--out', tmp_path / name, '--size', SIZE, *options)
    (fixed, _), (resizing, _) = (reload(tmp_path / name, 'torchscript') for name in ('fixed', 'resizing'))
    images = torch.randn(1, 3, 2 * SIZE, 3 * SIZE)
    expected, *rest = fixed(nn.functional.interpolate(images, (SIZE, SIZE), mode='bilinear', antialias=True))
    boxes, *others = resizing(images)
    torch.testing.assert_close(boxes, expected * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    torch.testing.assert_close(others, rest)


def test_sets_of_boxes_are_compared(detectors):
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20], [30, 30, 40, 40]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    found = (boxes, scores, labels)
    order = [1, 0, 2]
    moved = boxes.clone()
    moved[1, 2] += 0.25
    assert detectors.distance(found, tuple(each[order] for each in found)) == 0
    assert detectors.distance(found, (moved, scores, labels)) == 0.25
    assert detectors.distance(found, (boxes, scores - 0.01, labels)) == torch.inf
    assert detectors.distance(found, (boxes, scores, 1 - labels)) == torch.inf
    assert detectors.distance(found, tuple(each[:0] for each in found)) == torch.inf
    assert detectors.distance(found, tuple(each[:2] for each in found)) == torch.inf
    # One of two equal scores at the end was cut off, in either.
    tied = torch.tensor([0.9, 0.8, 0.8])
    cut = [each[[0, 1]] for each in (boxes, tied, labels)], [each[[0, 2]] for each in (boxes, tied, labels)]
    assert detectors.distance(*cut) == 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--dynamic-size'], 'A detector is exported for one size'),
        (['--size', '100'], '--size 100 100: the sides must be multiples of 32'),
        (['--cfg-options', 'model.test_cfg.score_thr=1.0'], 'finds nothing in the images, so nothing is compared'),
    ],
)
def test_what_cannot_be_exported_or_compared_is_said(tool, tmp_path, options, message):
    files = write(tmp_path / 'detector', small(DENSE))
    out = tmp_path / 'out' / 'model'
    with pytest.raises(SystemExit) as raised:
        tool.main([*files, '--to', 'torchscript', '--out', str(out), '--size', str(SIZE), *options])
    assert message in str(raised.value)
    assert not out.parent.exists()
