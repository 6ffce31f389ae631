"""What was made faster trains as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import build_qbheat, write_images
from mmengine.dataset import Compose, default_collate
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.registry import MODELS

from qbheat_mm.datasets.transforms.quarter_mask import visible_origins
from qbheat_mm.models import QBHeat
from qbheat_mm.models.utils import crop_quarter, masked_cells

STEPS, BATCH, SIZE = 200, 8, 64
CROP = dict(scale=SIZE, crop_ratio_range=(0.2, 1.0), interpolation='bicubic')
SLOW_CROP = dict(type='RandomResizedCrop', backend='pillow', **CROP)
FAST_CROP = dict(type='TorchRandomResizedCrop', **CROP)


@MODELS.register_module()
class WholeDecodingQBHeat(QBHeat):
    """Decodes every patch and weighs the visible ones with 0, with MAE's own head."""

    def loss(self, inputs, data_samples):
        head = MAEPretrainHead(dict(type='PixelReconstructionLoss', criterion='L2'), norm_pix=True, patch_size=16)
        origin = visible_origins(data_samples, inputs.device)
        features = self.neck(self.encode(crop_quarter(inputs, origin, 16)), origin)
        mask = torch.zeros(len(inputs), 16).scatter(1, masked_cells(origin, (4, 4)), 1)
        pred = self.decoder(features).unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)
        return dict(loss=head.loss(pred, inputs, mask))


def curve(paths: list[Path], crop: dict, model: str = 'QBHeat', rate: float = 1e-3, **optimizer) -> np.ndarray:
    """The loss of each step."""
    model = build_qbheat(type=model)
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
    before = curve(paths, SLOW_CROP, 'WholeDecodingQBHeat')
    same_pixels = curve(paths, SLOW_CROP, fused=True)
    after = curve(paths, FAST_CROP, fused=True)
    other = curve(paths, SLOW_CROP, fused=True, rate=0.98e-3)  # a small change of the learning rate
    assert before[-20:].mean() < 0.8 * before[:5].mean()
    assert np.abs(same_pixels - before).max() < min(0.003, 0.5 * np.abs(other - before).max())
    assert np.abs(after - before).max() < 0.01  # pixels differ by rounding
    assert np.abs(after - before).mean() < 0.002
