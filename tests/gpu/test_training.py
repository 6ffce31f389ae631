"""Ten steps of every kind of training on the device, at every precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers.models import ROOT
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample

from qbheat_mm.models.necks.whitening import WhiteningLayer

CONFIGS = {
    'qbheat': 'qbheat/qbheat_mobile-former-52m_1xb128-coslr-12e_imagenette.py',
    'qbheat-hog': 'qbheat/qbheat-hog_mobile-former-52m_1xb128-coslr-12e_imagenette.py',
    'mocov2': 'mocov2/mocov2_mobile-former-52m_1xb128-coslr-12e_imagenette.py',
    'supervised': 'mobile_former/mobile-former-52m_1xb128-coslr-12e_imagenette.py',
    'linear': 'benchmarks/mobile-former-52m_1xb128-linear-coslr-20e_imagenette.py',
    'linear-sweep': 'benchmarks/mobile-former-52m_1xb128-linear-sweep-coslr-20e_imagenette.py',
    'tran-1-whitened': 'benchmarks/mobile-former-52m_1xb128-tran-1-whitened-noaug-coslr-20e_imagenette.py',
    'fine-tuning': 'benchmarks/mobile-former-52m_1xb128-ft-coslr-12e_imagenette.py',
    'detr': 'detection/detr_mobile-former-285m-frozen_8xb2-150e_coco.py',
    'detr-trained': 'detection/detr_mobile-former-285m_8xb2-150e_coco.py',
    'conditional-detr': 'detection/conditional-detr_mobile-former-285m-frozen_8xb2-50e_coco.py',
    'dab-detr': 'detection/dab-detr_mobile-former-285m-frozen_8xb2-50e_coco.py',
    'deformable-detr': 'detection/deformable-detr_mobile-former-285m-frozen_16xb2-50e_coco.py',
    'retinanet': 'detection/retinanet_mobile-former-285m-frozen_8xb2-12e_coco.py',
    'fcos': 'detection/fcos_mobile-former-285m-frozen_8xb2-12e_coco.py',
    'fcos-light': 'detection/fcos-light_mobile-former-285m-frozen_1xb16-50e_coco-people320-person.py',
    'faster-rcnn': 'detection/faster-rcnn_mobile-former-285m-frozen_8xb2-12e_coco.py',
    'rtmdet': 'detection/rtmdet-tiny_mobile-former-285m-frozen_8xb32-300e_coco.py',
    'yolox': 'detection/yolox-tiny_mobile-former-285m-frozen_8xb8-300e_coco.py',
    'dino': 'detection/dino-4scale_mobile-former-285m-frozen_8xb2-12e_coco.py',
}
WRAPPERS = {
    'float32': dict(type='OptimWrapper'),
    'bfloat16': dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False)),
    'float16': dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic'),
}
STEPS = 10


def build(kind: str) -> tuple[torch.nn.Module, Config]:
    cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[kind])
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    cfg.model.backbone.init_cfg = None  # no checkpoint
    if 'encoder' in cfg.model:
        cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 2
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.init_weights()
    for module in model.modules():
        if isinstance(module, WhiteningLayer):
            module.set_identity()
    return model, cfg


def batch(kind: str, cfg: Config) -> dict:
    """Four images of 64 px, or two with boxes, large enough for DINO's 900 queries."""
    if cfg.default_scope == 'mmdet':
        samples, size = [], 256 if kind == 'dino' else 128
        for boxes in ([[10, 20, 60, 90], [50, 50, 120, 110]], [[0, 0, 100, 40]]):
            meta = dict.fromkeys(('img_shape', 'ori_shape', 'batch_input_shape'), (size, size))
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor(boxes).float(), labels=torch.zeros(len(boxes)).long()
            )
            samples.append(sample)
        return dict(inputs=list(torch.randint(256, (2, 3, size, size), dtype=torch.uint8)), data_samples=samples)
    samples = [DataSample(metainfo=dict(visible_origin=(i % 3, i % 2))).set_gt_label(i % 2) for i in range(4)]
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return dict(inputs=[images, images.flip(3)] if kind == 'mocov2' else images, data_samples=samples)


@pytest.mark.parametrize('precision', WRAPPERS)
@pytest.mark.parametrize('kind', CONFIGS)
def test_ten_steps(kind, precision, device, monkeypatch):
    if device.type == 'cpu' and precision != 'float32':
        pytest.skip("mmengine's AmpOptimWrapper wants a GPU")
    model, cfg = build(kind)
    if kind == 'mocov2':  # the same images as negatives would make the loss rise
        monkeypatch.setattr(type(model), '_dequeue_and_enqueue', lambda self, keys: None)
    model = model.to(device).train()
    before = copy.deepcopy(model.backbone.state_dict())
    frozen = not any(parameter.requires_grad for parameter in model.backbone.parameters())
    optimizer = dict(type='AdamW', lr=1e-4 if cfg.default_scope == 'mmdet' else 1e-3)
    wrapper = build_optim_wrapper(model, dict(WRAPPERS[precision], optimizer=optimizer, clip_grad=dict(max_norm=1.0)))
    np.random.seed(0)
    data, losses = batch(kind, cfg), []
    for step in range(STEPS):
        MessageHub.get_current_instance().update_info('iter', step)  # YOLOX changes the size of images by it
        log = model.train_step(copy.deepcopy(data), wrapper)
        assert {value.device.type for value in log.values()} == {device.type}
        losses.append(float(log['loss']))
    print(kind, precision, losses)
    assert np.isfinite(losses).all()
    if kind != 'rtmdet':  # whose first targets are hardly any: they grow with its scores
        assert np.mean(losses[-3:]) < losses[0]
    same = all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert same == frozen  # to the bit, statistics included
