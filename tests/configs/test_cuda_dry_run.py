"""Every config's model on a CUDA device that does not exist: no tensor stays on the CPU, losses are float32."""

from __future__ import annotations

import functools
import re
from unittest.mock import patch

import pytest
import torch
from helpers.fake_cuda import cuda_autocast, fake_cuda, to_fake_cuda
from helpers.models import ROOT, build_qbheat
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from torch import nn

from qbheat_mm.evaluation.functional.knn import knn_predict
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS
from qbheat_mm.models.necks import QBHeatDecoder
from qbheat_mm.models.necks.whitening import WhiteningLayer

CONFIGS = sorted(path.relative_to(ROOT / 'configs').as_posix() for path in (ROOT / 'configs').glob('[!_]*/*.py'))
SHORT = {name: dict(arch, blocks=list(dict.fromkeys(arch['blocks']))) for name, arch in ARCH_SETTINGS.items()}
PRECISIONS = (torch.float32, torch.bfloat16)


def batch(scope: str, views: int, size: int = 224) -> dict:
    """Two images of bytes on the host, as they come from a loader; one has no box."""
    if scope == 'mmdet':
        meta = dict(img_shape=(size, size), ori_shape=(size, size), batch_input_shape=(size, size))
        samples = [DetDataSample(metainfo=meta) for _ in range(2)]
        for sample, boxes in zip(samples, (3, 0)):
            labels = torch.empty(boxes, dtype=torch.long)
            sample.gt_instances = InstanceData(bboxes=torch.empty(boxes, 4), labels=labels)
        return dict(inputs=[torch.empty(3, size, size, dtype=torch.uint8) for _ in samples], data_samples=samples)
    samples = [DataSample(metainfo=dict(visible_origin=origin)).set_gt_label(0) for origin in ((0, 7), (3, 0))]
    images = [torch.empty(2, 3, size, size, dtype=torch.uint8) for _ in range(views)]
    return dict(inputs=images if views > 1 else images[0], data_samples=samples)


def run(model: nn.Module, data: dict, scope: str) -> dict | list | tuple:
    """Losses; predictions of a detector, whose loss depends on values, and features of a model without a head."""
    data = model.data_preprocessor(data, True)
    if hasattr(model, 'rpn_head'):
        return model.rpn_head(model.extract_feat(data['inputs']))  # the rest depends on the proposals' values
    has_loss = scope != 'mmdet' and model.head is not None
    return model(**data, mode='loss' if has_loss else 'tensor')


def tensors(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        return [tensor for each in outputs for tensor in tensors(each)]
    return [outputs] if isinstance(outputs, torch.Tensor) else []


def dry_run(model: nn.Module, scope: str) -> None:
    """In float32 and in bfloat16."""
    for module in model.modules():
        if isinstance(module, WhiteningLayer):
            module.set_identity()
    with fake_cuda():
        model = to_fake_cuda(model)
        model.train(scope != 'mmdet')  # training reads the boxes
        data = batch(scope, views=2 if hasattr(model, 'encoder_k') else 1)
        for dtype in PRECISIONS:
            with cuda_autocast(dtype):
                outputs = run(model, data, scope)
            found = tensors(outputs)
            assert found
            assert {tensor.device.type for tensor in found} == {'cuda'}
            if isinstance(outputs, dict):
                assert {tensor.dtype for tensor in found} == {torch.float32}, outputs


@functools.cache
def dry_run_once(scope: str, model: str) -> None:
    """Many configs share a model, which is given as text."""
    with DefaultScope.overwrite_default_scope(scope), patch.dict(ARCH_SETTINGS, SHORT):
        dry_run(MODELS.build(ConfigDict(eval(model))), scope)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_forward_pass_on_cuda(name):
    """What repeats itself is left out: blocks and layers of the same kind and size, other numbers of classes."""
    cfg = Config.fromfile(ROOT / 'configs' / name)
    if 'data_preprocessor' in cfg:  # the Runner puts it into the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    cfg.model.backbone.init_cfg = None
    for part in {'encoder', 'decoder'} & cfg.model.keys() if cfg.default_scope == 'mmdet' else ():
        cfg.model[part].num_layers = 2
    cfg.model.get('data_preprocessor', {}).pop('batch_augments', None)  # YOLOX's ask the run for its iteration
    dry_run_once(cfg.default_scope, re.sub(r"'num_classes': \d+", "'num_classes': 10", repr(cfg.model.to_dict())))


class OnTheHost(QBHeatDecoder):
    """Computes positions on the CPU, which a CPU does not mind."""

    def forward(self, features, ids=None):
        return super().forward(features + torch.zeros(features.shape[1:]), ids)


class InHalfPrecision(nn.Module):
    """A loss that autocast does not reach as float32."""

    def forward(self, pred, target):
        return (pred - target).mean().bfloat16()


def test_a_tensor_made_on_the_host_is_found():
    model = build_qbheat()
    dry_run(model, 'mmpretrain')
    model.decoder.__class__ = OnTheHost
    assert model.loss(torch.rand(1, 3, 64, 64), [DataSample(metainfo=dict(visible_origin=(0, 0)))])
    with pytest.raises(RuntimeError, match=r'device.*cpu'):
        dry_run(model, 'mmpretrain')


def test_a_tensor_that_does_not_follow_its_model_is_found():
    model = build_qbheat()
    shift = torch.zeros(20, 1, 1)  # neither parameter nor buffer
    model.backbone.shift = shift
    model.neck.register_forward_pre_hook(lambda neck, args: (args[0] + model.backbone.shift, args[1]))
    with pytest.raises((RuntimeError, AssertionError)):
        dry_run(model, 'mmpretrain')


def test_a_loss_in_half_precision_is_found():
    model = build_qbheat()
    model.head.loss_module = InHalfPrecision()
    with pytest.raises(AssertionError, match='bfloat16'):
        dry_run(model, 'mmpretrain')


def test_autocast_reaches_the_layers():
    model, found = build_qbheat(), set()
    model.decoder.pred.register_forward_hook(lambda module, args, output: found.add((output.dtype, output.device.type)))
    dry_run(model, 'mmpretrain')
    assert found == {(dtype, 'cuda') for dtype in PRECISIONS}


def test_k_nearest_neighbors():
    with fake_cuda():
        bank, queries = (torch.empty(count, 20, device='cuda') for count in (50, 8))
        predicted = knn_predict(queries, bank, torch.empty(50, dtype=torch.long, device='cuda'), (5, 20), bank_block=30)
    assert {(k, tuple(each.shape), each.device.type) for k, each in predicted.items()} == {
        (k, (8,), 'cuda') for k in (5, 20)
    }
