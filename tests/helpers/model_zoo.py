"""Any detector of MMDetection's model zoo on Mobile-Former: a training step and a prediction on random data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import mmdet
import torch
import yaml
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn import functional as F

from qbheat_mm.models import MobileFormer

MIM = Path(mmdet.__file__).parent / '.mim'
SIDE = 128  # of the images


@MODELS.register_module()
class MobileFormerAsAnother(nn.Module):
    """Mobile-Former 52m with the sizes and channels of another backbone's outputs."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.backbone = MobileFormer('52m', out_indices=(0, 1, 2, 3))
        self.strides = strides
        # the stage of the same stride, or the nearest
        self.stages = [min(max(stride.bit_length() - 3, 0), 3) for stride in self.strides]
        own = [stage.shape[1] for stage in self.backbone(torch.rand(1, 3, 64, 64))]
        self.mappers = nn.ModuleList(
            nn.Conv2d(own[stage], count, 1) for stage, count in zip(self.stages, channels, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features (N, C_i, H / s_i, W / s_i)."""
        stages = self.backbone(x)
        sizes = [tuple(side // stride for side in x.shape[2:]) for stride in self.strides]
        return tuple(
            mapper(F.interpolate(stages[stage], size))
            for mapper, stage, size in zip(self.mappers, self.stages, sizes, strict=True)
        )


def _path(config: str, metafile: str) -> str:
    """A config's path in the package; some entries are quoted as in a URL, or relative to their metafile."""
    path = unquote(config)
    return path if (MIM / path).is_file() else str(Path(metafile).parent / path)


def index() -> dict[str, list[str]]:
    """Configs of detectors in the model zoo's index, by family; there is one metafile for each.

    Entries without a file in the package are left out.
    """
    families = {}
    for file in yaml.safe_load((MIM / 'model-index.yml').read_text())['Import']:
        content = yaml.safe_load((MIM / file).read_text())
        configs = [
            _path(model['Config'], file)
            for model in (content['Models'] if isinstance(content, dict) else content)
            if any(result['Task'] == 'Object Detection' for result in model.get('Results') or ())
        ]
        if configs:
            families[Path(file).parent.name] = [each for each in configs if (MIM / each).is_file()]
    return families


def _adapt(cfg: ConfigDict | list) -> None:
    """No checkpoints, and BatchNorm in place of SyncBN, which needs GPUs."""
    if isinstance(cfg, dict):
        for key in ('pretrained', 'teacher_ckpt'):
            cfg.pop(key, None)
        if isinstance(cfg.get('teacher_config'), str):
            cfg['teacher_config'] = str(MIM / cfg['teacher_config'])
        if cfg.get('eps') == 0:  # newer versions of PyTorch refuse it
            cfg['eps'] = 1e-5
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, (dict, list)):
            _adapt(value)
    if isinstance(cfg, dict):
        if cfg.get('type') in ('SyncBN', 'MMSyncBN'):
            cfg['type'] = 'BN'
        if cfg.get('type') == 'Pretrained':
            cfg.clear()
        if not cfg.get('init_cfg', True):
            cfg['init_cfg'] = None


def layout(backbone: dict) -> dict[str, list[int]]:
    """Channels and strides of a backbone's outputs, computed without numbers where its class can be built so."""
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device), torch.no_grad():
                module = MODELS.build(backbone)
                module.eval()
                outputs = module(torch.rand(1, 3, SIDE, SIDE))
            break
        except (RuntimeError, ValueError):
            if device == 'cpu':
                raise
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    return dict(
        channels=[each.shape[1] for each in outputs], strides=[round(SIDE / each.shape[-1]) for each in outputs]
    )


def build(config: str) -> nn.Module:
    """A config's detector, its backbone replaced."""
    cfg = Config.fromfile(MIM / config).model
    _adapt(cfg)
    cfg.get('data_preprocessor', {}).pop('batch_augments', None)
    cfg.backbone = dict(type='MobileFormerAsAnother', **layout(cfg.backbone))
    return MODELS.build(cfg)


# Of the ops that detectors of MMDetection call, these have no counterpart in torchvision: the types that call them.
LACKING = {
    'FPN_CARAFE': 'carafe_forward',
    'carafe': 'carafe_forward',
    'GARetinaHead': 'masked_im2col_forward',
    'GARPNHead': 'masked_im2col_forward',
    'DeformRoIPoolPack': 'deform_roi_pool_forward',
    'ModulatedDeformRoIPoolPack': 'deform_roi_pool_forward',
}


def _types(value: object) -> set[str]:
    """All ``type`` fields in a config."""
    if isinstance(value, dict):
        own = {value['type']} if isinstance(value.get('type'), str) else set()
        return own.union(*map(_types, value.values()))
    return set().union(*map(_types, value)) if isinstance(value, (list, tuple)) else set()


def lacking(configs: Iterable[str]) -> dict[str, list[str]]:
    """The configs whose model calls an op without a counterpart, by op."""
    found = {}
    for config in sorted(set(configs)):
        for op in {LACKING[each] for each in _types(Config.fromfile(MIM / config).get('model', {})) & set(LACKING)}:
            found.setdefault(op, []).append(config)
    return found


def batch(count: int = 2, side: int = SIDE, masks: bool = False, semantic: bool = False) -> dict:
    """Random images with two boxes each."""
    shapes, boxes = [[3, side, side]] * count, [2] * count
    return demo_mm_inputs(count, shapes, num_classes=2, num_items=boxes, with_mask=masks, with_semantic=semantic)


def side_of_images(model: nn.Module) -> int:
    """A side of the images in pixels that suffices for a detector."""
    if type(getattr(model, 'neck', None)).__name__ == 'SSDNeck':
        return 320  # six levels
    return SIDE if getattr(model, 'num_queries', 0) < 900 else 256  # as many positions as queries


def step_and_predict(config: str) -> None:
    """A training step and a prediction.

    Raises:
        Exception: Whatever goes wrong.
    """
    torch.manual_seed(0)
    for progress in ('epoch', 'iter'):  # what a runner tells the losses that warm up
        MessageHub.get_current_instance().update_info(progress, 0)
    model = build(config)
    model.init_weights()
    inputs = dict(
        side=side_of_images(model),
        masks=bool(getattr(model, 'with_mask', False)) or hasattr(model, 'panoptic_head'),
        semantic=any(getattr(part, 'with_semantic', False) for part in (model, getattr(model, 'roi_head', None))),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()
    loss, _ = model.parse_losses(model(**model.data_preprocessor(batch(**inputs), training=True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert any(each.grad is not None for each in model.backbone.backbone.parameters())
    optimizer.step()
    model.eval()
    with torch.no_grad():
        # one image, which is what Guided Anchoring takes
        results = model(**model.data_preprocessor(batch(1, **inputs)), mode='predict')
    assert all(result.pred_instances.bboxes.isfinite().all() for result in results)
