"""A detector overfits eight images: minutes of training, so on request only."""

from __future__ import annotations

import os
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from helpers.coco import coco_dataset, detection_pipeline
from helpers.models import ROOT, load_script
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmdet')
from mmdet.registry import MODELS

ANN_FILE = 'annotations/train.json'
ITERATIONS = int(os.environ.get('QBHEAT_OVERFIT', 0))


def write_random_backbone(cfg: Config, image_dir: Path, out: Path) -> None:
    """Random weights with the BatchNorm statistics of the images, without which all features are nearly equal."""
    torch.manual_seed(0)
    backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None, frozen_stages=-1))
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average
    images = [torch.from_numpy(mmcv.imread(path)).permute(2, 0, 1) for path in sorted(image_dir.iterdir())]
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    with torch.no_grad():
        backbone.train()(preprocessor(dict(inputs=images, data_samples=[]))['inputs'])
    torch.save({f'backbone.{key}': value for key, value in backbone.state_dict().items()}, out)


def small_transformer(model: Config, classes: int) -> dict:
    """One layer in the encoder, two in the decoder, and no dropout: the test is of the path, not the size."""
    encoder = dict(self_attn_cfg=dict(dropout=0.0), ffn_cfg=dict(feedforward_channels=512, ffn_drop=0.0))
    attention = dict(dropout=0.0) if model.type == 'DETR' else dict(attn_drop=0.0)
    decoder = dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=encoder['ffn_cfg'])
    return dict(
        num_queries=20,
        test_cfg=dict(max_per_img=20),
        neck=dict(norm_cfg=dict(type='GN', num_groups=32)),
        encoder=dict(num_layers=1, layer_cfg=encoder),
        decoder=dict(num_layers=2, layer_cfg=decoder),
        bbox_head=dict(num_classes=classes),
    )


def own_size(model: Config, classes: int) -> dict:
    """A detector with a feature pyramid as it is, without changes of the images' size."""
    head = dict(bbox_head=dict(num_classes=classes))
    if model.type == 'RTMDet':  # boxes of a stride's size from the first step on; without it they start without area
        head['bbox_head']['exp_on_reg'] = True
    return dict(
        data_preprocessor=dict(batch_augments=None), **(dict(roi_head=head) if model.type == 'FasterRCNN' else head)
    )


def small(cfg: Config, data: Path, classes: tuple[str, ...], backbone: Path) -> None:
    """A short schedule on eight images, and a model to match."""
    # 160 px is the size of the images; the detector needs the scale_factor of Resize.
    dataset = coco_dataset(data, classes=classes, pipeline=detection_pipeline(160)) | dict(ann_file=ANN_FILE)
    loader = dict(batch_size=8, num_workers=0, persistent_workers=False, batch_sampler=None)
    transformer = 'encoder' in cfg.model
    model = (small_transformer if transformer else own_size)(cfg.model, len(classes))
    cfg.merge_from_dict(
        dict(
            model=dict(model, backbone=dict(init_cfg=dict(checkpoint=str(backbone)))),
            # a finite sampler would end after each step, and mmengine then waits two seconds
            train_dataloader=dict(loader, sampler=dict(type='InfiniteSampler')),
            val_dataloader=dict(loader, dataset=dataset),
            val_evaluator=dict(ann_file=str(data / ANN_FILE)),
            **dict.fromkeys(('test_dataloader', 'test_evaluator', 'test_cfg')),
            optim_wrapper=dict(
                optimizer=dict(lr=4e-4)
                if transformer
                else dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.0),
            ),
            auto_scale_lr=dict(enable=False),
            train_cfg=dict(
                _delete_=True, type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=ITERATIONS // 10
            ),
        )
    )
    cfg.train_dataloader.dataset = dataset  # in place of mmdet's wrapper for mosaics
    for name in ('ema', 'mode_switch', 'pipeline_switch'):  # of hundreds of epochs
        cfg.default_hooks.pop(name, None)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=ITERATIONS),
    ]


@pytest.mark.slow
@pytest.mark.skipif(ITERATIONS < 100, reason='minutes of training; QBHEAT_OVERFIT=300 (iterations) asks for it')
@pytest.mark.parametrize(
    'schedule',
    [
        'conditional-detr,8xb2-50e',
        'detr,8xb2-150e',
        'retinanet,8xb2-12e',
        'fcos,8xb2-12e',
        'faster-rcnn,8xb2-12e',
        'rtmdet-tiny,8xb32-300e',
        'yolox-tiny,8xb8-300e',
    ],
)
def test_eight_images_are_overfitted(schedule, tmp_path):
    pytest.importorskip('skimage')
    detector, schedule = schedule.split(',')
    data, backbone = tmp_path / 'data', tmp_path / 'backbone.pth'
    converter = load_script('demo/make_data.py')
    converter.write_detection(data, dict(train=8), size=160, rng=np.random.default_rng(0))
    cfg = Config.fromfile(ROOT / f'configs/detection/{detector}_mobile-former-285m-frozen_{schedule}_coco.py')
    DefaultScope._instance_dict.clear()
    init_default_scope('mmdet')
    write_random_backbone(cfg, data / 'images', backbone)
    small(cfg, data, converter.OBJECTS, backbone)
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = detector
    DefaultScope._instance_dict.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()
    curve = [round(float(value), 3) for value in runner.message_hub.get_scalar('val/coco/bbox_mAP_50').data[0]]
    print(f'{detector}: AP50 every {ITERATIONS // 10} iterations: {curve}')
    assert curve[-1] > 0.9, curve
