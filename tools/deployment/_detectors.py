"""Detectors of MMDetection as modules that exporters take: from one normalized image to boxes, scores and labels.

What MMDetection does in lists of objects, with branches that depend on the image, is done here in tensors: the
dense decoding, NMS and the choice of RoIs' levels. The networks are MMDetection's own. tools/deployment/export.py
compares each file with MMDetection's ``predict``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import torch
from mmdet.models import BaseDetector, DetectionTransformer, SingleStageDetector, TwoStageDetector, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.fx.experimental import proxy_tensor
from torchvision.ops import nms, roi_align

Detections = tuple[Tensor, Tensor, Tensor]  # boxes (K, 4), scores (K,), labels (K,), by falling score
SAME_SCORE = 1e-3  # of a detection in two runtimes
TIE = 1e-5  # difference of scores whose order is left to rounding


class ExportableDetector(nn.Module):
    """A detector for images of one size.

    Args:
        detector: A DETR, a detector of one stage, or of two stages with RoIAlign.
        size: Height and width of the images, in pixels.

    Raises:
        ValueError: If the detector is of another kind, or the size is none of its input.
    """

    def __init__(self, detector: BaseDetector, size: tuple[int, int]) -> None:
        super().__init__()
        divisor = detector.data_preprocessor.pad_size_divisor
        if any(side % divisor for side in size):
            raise ValueError(f'--size {size[0]} {size[1]}: the sides must be multiples of {divisor}, as in training.')
        kinds = {DetectionTransformer: _detect_with_queries, TwoStageDetector: _detect_in_two_stages}
        kinds[SingleStageDetector] = _detect_densely
        self.detect = next((detect for kind, detect in kinds.items() if isinstance(detector, kind)), None)
        if self.detect is None:
            raise ValueError(f'{type(detector).__name__} is no kind of detector that can be exported.')
        self.detector, self.size = detector, tuple(size)

    def forward(self, images: Tensor) -> Detections:
        """Boxes (x1, y1, x2, y2) in pixels, scores and labels of one image, (1, 3, H, W)."""
        with _constant_shapes():
            return self.detect(self.detector, images, self.size)

    @torch.no_grad()
    def reference(self, images: Tensor) -> Detections:
        """The same by MMDetection's own ``predict``."""
        found = self.detector.predict(images, [_sample(self.size)], rescale=False)[0].pred_instances
        return get_box_tensor(found.bboxes), found.scores, found.labels


def distance(found: Detections, expected: Detections) -> float:
    """The largest distance, in pixels of a coordinate, from a box to the nearest of its label and score in the other.

    Sets are compared: the order of equal scores is left to rounding, and so is which of them are cut off at the end of
    the list. Infinite where a detection has no counterpart.
    """
    if len(found[0]) != len(expected[0]):
        return torch.inf
    if not len(found[0]):
        return 0.0
    (boxes, scores, labels), (others, their_scores, their_labels) = found, expected
    same = (labels[:, None] == their_labels) & ((scores[:, None] - their_scores).abs() <= SAME_SCORE)
    distances = torch.where(same, torch.cdist(boxes, others, p=torch.inf), torch.inf)
    end = max(scores.min(), their_scores.min()) + TIE
    nearest = torch.cat([distances.amin(1)[scores > end], distances.amin(0)[their_scores > end]])
    return (nearest if len(nearest) else distances.amin(1)).max().item()


def _sample(size: tuple[int, int]) -> DetDataSample:
    """An image without padding."""
    return DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))


@contextlib.contextmanager
def _constant_shapes() -> Iterator[None]:
    """Deformable DETR and DINO read the sizes of the levels from a tensor: torch.export shall know what is in it."""
    limit, most = 'CONSTANT_NUMEL_LIMIT', 64
    with (
        patch.object(fake_tensor, limit, most),
        patch.object(proxy_tensor, limit, most),
        patch.object(torch, '_shape_as_tensor', lambda tensor: torch.tensor(tensor.shape)),
    ):
        yield


def _detect_with_queries(detector: DetectionTransformer, images: Tensor, size: tuple[int, int]) -> Detections:
    """DETR and its successors: the best of a fixed number of queries."""
    samples = [_sample(size)]
    states = detector.forward_transformer(detector.extract_feat(images), samples)
    found = detector.bbox_head.predict(**states, batch_data_samples=samples, rescale=False)[0]
    return found.bboxes, found.scores, found.labels


def _detect_densely(detector: SingleStageDetector, images: Tensor, size: tuple[int, int]) -> Detections:
    """One stage: a score for each class at every position."""
    head = detector.bbox_head
    outs = list(zip(*head(detector.extract_feat(images)), strict=True))
    if isinstance(head, YOLOXHead):
        found = _decode_yolox(head, outs)
    else:
        levels = [_decode(head, level, each, size) for level, each in enumerate(outs)]
        found = map(torch.cat, zip(*levels, strict=True))
    return _suppress(*found, head.test_cfg)


def _detect_in_two_stages(detector: TwoStageDetector, images: Tensor, size: tuple[int, int]) -> Detections:
    """Proposals of a dense head, each classified by its RoI."""
    features = detector.extract_feat(images)
    rpn, roi_head = detector.rpn_head, detector.roi_head
    levels = [_decode(rpn, level, each, size) for level, each in enumerate(zip(*rpn(features), strict=True))]
    boxes, scores, _ = map(torch.cat, zip(*levels, strict=True))
    level_ids = torch.cat([torch.full_like(labels, level) for level, (_, _, labels) in enumerate(levels)])
    proposals, _, _ = _suppress(boxes, scores, level_ids, rpn.test_cfg)
    if not torch.jit.is_tracing():
        torch._check(proposals.shape[0] > 0)  # there is no threshold on their scores
    rois = torch.cat([torch.zeros_like(proposals[:, :1]), proposals], dim=1)  # of image 0
    head = roi_head.bbox_head
    logits, deltas = head(_extract_rois(roi_head.bbox_roi_extractor, features, rois))
    scores = logits.softmax(-1)[:, :-1]  # without the background
    of_class = proposals[:, None].expand(-1, scores.shape[1], -1).reshape(-1, 4)
    boxes = head.bbox_coder.decode(of_class, deltas.reshape(-1, 4), max_shape=size)
    labels = torch.arange(scores.shape[1]).expand_as(scores).reshape(-1)
    scores = _threshold(scores.reshape(-1), roi_head.test_cfg.score_thr)
    return _suppress(boxes, scores, labels, roi_head.test_cfg)


def _threshold(scores: Tensor, least: float) -> Tensor:
    """Scores, 0 where they are not larger than ``least``."""
    return torch.where(scores > least, scores, 0.0)


def _decode(head: BaseDenseHead, level: int, outs: Sequence[Tensor], size: tuple[int, int]) -> Detections:
    """The ``nms_pre`` best boxes of a level; those below the threshold have a score of 0.

    Args:
        head: FCOS', RetinaNet's, RTMDet's or an RPN's.
        level: Index of the level.
        outs: Of the head for one image: logits, regression and, where the head has one, the logit of a factor of the
            scores; (1, channels, H, W).
        size: Of the image.
    """
    logits, deltas, *factors = (each[0].permute(1, 2, 0) for each in outs)
    priors = head.prior_generator.single_level_grid_priors(logits.shape[:2], level, device=logits.device)
    logits = logits.reshape(-1, head.cls_out_channels)
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
    count, classes = scores.numel(), scores.shape[1]
    limit = head.test_cfg.get('nms_pre', -1)
    scores, best = scores.reshape(-1).topk(min(limit, count) if limit > 0 else count)
    rows, labels = best // classes, best % classes
    boxes = head.bbox_coder.decode(priors[rows], deltas.reshape(-1, 4)[rows], max_shape=size)
    scores = _threshold(scores, head.test_cfg.get('score_thr', 0))
    for factor in factors:
        scores = scores * factor.reshape(-1)[rows].sigmoid()
    return boxes, scores, labels


def _decode_yolox(head: YOLOXHead, outs: Sequence[Sequence[Tensor]]) -> Detections:
    """A box of the most probable class at every position of all levels, as :func:`_decode`."""
    priors = head.prior_generator.grid_priors(
        [level[0].shape[2:] for level in outs], device=outs[0][0].device, with_stride=True
    )
    logits, deltas, objectness = (
        torch.cat([each[0].permute(1, 2, 0).reshape(-1, each.shape[1]) for each in levels])
        for levels in zip(*outs, strict=True)
    )
    scores, labels = logits.sigmoid().max(dim=1)
    scores = _threshold(scores * objectness[:, 0].sigmoid(), head.test_cfg.score_thr)
    return head._bbox_decode(torch.cat(priors), deltas[None])[0], scores, labels


def _extract_rois(extractor: SingleRoIExtractor, features: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Features (K, C, h, w) of RoIs (K, 5), each from the level of its size."""
    layers = extractor.roi_layers
    levels = extractor.map_roi_levels(rois, len(layers))
    out = rois.new_zeros(rois.shape[0], extractor.out_channels, *layers[0].output_size)
    for i, layer in enumerate(layers):
        index = (levels == i).nonzero().squeeze(1)
        aligned = roi_align(
            features[i], rois[index], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        out = out.index_put((index,), aligned)
    return out


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, cfg: ConfigDict) -> Detections:
    """Greedy NMS in each class of the boxes with a score, then the best of them."""
    valid = scores > 0
    if cfg.get('min_bbox_size', -1) >= 0:
        valid = valid & (boxes[:, 2:] - boxes[:, :2] > cfg.min_bbox_size).all(dim=1)
    boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
    # torchvision's NMS is declared to keep at least two: two boxes of no class, which come last and are dropped.
    candidates = torch.cat([boxes, boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, -1)])
    classes = torch.cat([labels, labels.new_tensor([-1, -2])])
    order = torch.cat([scores, scores.new_tensor([-1.0, -2.0])])
    # As mmcv's batched_nms: the classes side by side, so that boxes of two do not overlap.
    candidates = candidates + (classes * (candidates.max() + 1))[:, None]
    kept = nms(candidates, order, cfg.nms.iou_threshold)[:-2][: cfg.get('max_per_img')]
    return boxes[kept], scores[kept], labels[kept]
