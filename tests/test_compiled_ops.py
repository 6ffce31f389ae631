"""With mmcv's compiled ops the detectors that need them work too, on our backbones; without them these tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from torch import Tensor, nn
from torchvision.ops import batched_nms

from qbheat_mm import compat

mmdet = pytest.importorskip('mmdet')
pytestmark = pytest.mark.skipif(
    not compat.has_compiled_ops(), reason=f"mmcv's compiled ops are not installed; {compat.BUILD_MMCV_OPS}"
)
CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))]


@pytest.fixture(autouse=True)
def _mmdet_scope(_mmpretrain_scope):
    DefaultScope._instance_dict.clear()
    init_default_scope('mmdet')


def detector(config: str) -> nn.Module:
    """One of mmdet's own, with a feature pyramid over Mobile-Former 52m's four stages."""
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / config).model
    cfg.backbone = dict(type='mmpretrain.MobileFormer', arch='52m', out_indices=(0, 1, 2, 3))
    channels = [feature.shape[1] for feature in MODELS.build(cfg.backbone)(torch.rand(1, 3, 64, 64))]
    cfg.neck.in_channels = channels
    return MODELS.build(cfg)


def batch(device: str) -> dict:
    """Two images with a box each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for box in ([10.0, 20.0, 90.0, 100.0], [30.0, 10.0, 120.0, 60.0]):
        meta = dict(img_shape=(128, 128), ori_shape=(128, 128), pad_shape=(128, 128), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=torch.tensor([box]), labels=torch.tensor([1]))
        samples.append(sample.to(device))
    return dict(inputs=list(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)), data_samples=samples)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    'config', ['faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py']
)
def test_a_detector_with_roi_align_and_nms_learns_and_predicts(config, device):
    model = detector(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(8):
        torch.manual_seed(1)
        values = model(**model.data_preprocessor(batch(device), training=True), mode='loss')
        loss, _ = model.parse_losses(values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(each.grad is not None for each in model.backbone.parameters() if each.requires_grad)
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch(device)), mode='predict')
    for result in results:
        found = result.pred_instances
        assert found.bboxes.isfinite().all()
        kept = batched_nms(found.bboxes, found.scores, found.labels, iou_threshold=0.7)
        assert len(kept) == len(found)  # no box of a class covers another of it


@pytest.mark.skipif(not torch.cuda.is_available(), reason='mmcv takes the PyTorch way on a CPU')
def test_the_compiled_deformable_attention_is_taken_and_gives_what_pytorch_gives():
    from mmcv.ops import multi_scale_deform_attn as module

    assert module.MultiScaleDeformableAttnFunction.__module__ == module.__name__
    torch.manual_seed(0)
    shapes, starts = torch.tensor([[4, 6], [2, 3]]), torch.tensor([0, 24]).cuda()
    value, locations, weights = torch.randn(2, 30, 4, 8), torch.rand(2, 5, 4, 2, 3, 2), torch.rand(2, 5, 4, 2, 3)
    inputs = [each.cuda().requires_grad_() for each in (value, locations, weights)]
    expected = module.multi_scale_deformable_attn_pytorch(inputs[0], shapes.tolist(), *inputs[1:])
    found = module.MultiScaleDeformableAttnFunction.apply(inputs[0], shapes.cuda(), starts, *inputs[1:], 64)
    for one, other in zip(with_gradients(found, inputs), with_gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output and its gradients."""
    return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]
