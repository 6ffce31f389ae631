"""What was made faster trains as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import qbheat_config, write_images
from mmengine.dataset import Compose, default_collate
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.registry import MODELS

from qbheat_mm.models import QBHeatPretrainHead

STEPS, BATCH, SIZE = 200, 8, 64
CROP = dict(scale=SIZE, crop_ratio_range=(0.2, 1.0), interpolation='bicubic')
SLOW_CROP = dict(type='RandomResizedCrop', backend='pillow', **CROP)
FAST_CROP = dict(type='TorchRandomResizedCrop', **CROP)


@MODELS.register_module()
class WholeDecodingHead(QBHeatPretrainHead):
    """Decodes every patch and weighs the visible ones with 0, as MAE's head does, on targets as it makes them."""

    patchify = MAEPretrainHead.patchify

    def loss(self, features, images, hidden):
        masked = torch.zeros(features.shape[0], features.shape[2] * features.shape[3]).scatter(1, hidden, 1)
        target = MAEPretrainHead.construct_target(self, images).unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2)
        return dict(loss=self.loss_module(self(features), target, masked))


def curve(paths: list[Path], crop: dict, head: str, rate: float = 1e-3, **optimizer) -> np.ndarray:
    """The loss of each step."""
    config = qbheat_config()
    config['head']['type'] = head
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.05, **optimizer)
    pipeline = Compose(
        [
            dict(type='LoadImageFromFile', imdecode_backend='pillow'),
            crop,
            dict(type='RandomFlip', prob=0.5),
            dict(type='QuarterMask'),
            dict(type='PackInputs', meta_keys=('visible_origin',)),
        ]
    )
    np.random.seed(0)
    losses = []
    for _ in range(STEPS):
        chosen = np.random.choice(paths, BATCH)
        data = model.data_preprocessor(default_collate([pipeline(dict(img_path=str(path))) for path in chosen]), True)
        loss = model.loss(**data)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.slow
def test_curves_before_and_after_lie_on_each_other(tmp_path):
    paths = write_images(tmp_path, 12, size=120)
    before = curve(paths, SLOW_CROP, 'WholeDecodingHead')
    same_pixels = curve(paths, SLOW_CROP, 'QBHeatPretrainHead', fused=True)
    after = curve(paths, FAST_CROP, 'QBHeatPretrainHead', fused=True)
    other = curve(
        paths, SLOW_CROP, 'QBHeatPretrainHead', fused=True, rate=0.98e-3
    )  # a change that one would call small
    assert before[-20:].mean() < 0.8 * before[:5].mean()
    assert np.abs(same_pixels - before).max() < min(0.003, 0.5 * np.abs(other - before).max())
    assert np.abs(after - before).max() < 0.01  # pixels differ by rounding
    assert np.abs(after - before).mean() < 0.002
