"""Weighted k-nearest-neighbor classification of frozen features: how well they cluster, without any training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.model import BaseModel
from mmpretrain.utils import get_ori_model
from torch import Tensor
from torch.utils.data import DataLoader


@torch.no_grad()
def knn_predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    ks: Sequence[int] = (20, 200),
    temperature: float = 0.07,
    query_block: int = 1024,
    bank_block: int = 65536,
) -> dict[int, Tensor]:
    """Classify each query by its k most similar bank features, as `Wu et al. <https://arxiv.org/abs/1805.01978>`_.

    A neighbor votes for its class with exp(s / T), s the cosine similarity (all votes are divided by exp(1 / T), so
    that none overflows). At no time there are more than
    ``query_block * bank_block`` similarities: 0.27 GB in float32 by default. For ImageNet-1k (a bank of 1.28 M, 50,000
    queries) and 160 channels in float32 the bank takes 0.82 GB (0.41 GB in float16), the queries 0.03 GB; the full
    matrix would take 256 GB.

    Args:
        queries: (Q, C), any float type.
        bank: (B, C).
        labels: (B,), classes of the bank's features, from 0.
        ks: Numbers of neighbors, at most B.
        temperature: T.
        query_block: Queries at a time.
        bank_block: Bank features at a time.

    Returns:
        Per k the predicted classes (Q,).

    Raises:
        ValueError: If the bank is smaller than the largest k.
    """
    largest = max(ks)
    if len(bank) < largest:
        raise ValueError(f'k-NN with k={largest} needs at least as many labeled features; the bank has {len(bank)}.')
    num_classes = int(labels.max()) + 1
    predictions = {k: [] for k in ks}
    for block in queries.split(query_block):
        similarity, nearest = _nearest(F.normalize(block.float(), dim=1), bank, largest, bank_block)
        votes, classes = ((similarity - 1) / temperature).exp(), labels[nearest]  # (q, k), the most similar first
        for k in ks:
            score = votes.new_zeros(len(block), num_classes).scatter_add_(1, classes[:, :k], votes[:, :k])
            predictions[k].append(score.argmax(1))
    return {k: torch.cat(each) for k, each in predictions.items()}


def _nearest(queries: Tensor, bank: Tensor, k: int, bank_block: int) -> tuple[Tensor, Tensor]:
    """The k largest similarities (q, k) of normalized queries, in descending order, and where they lie in the bank."""
    best = queries.new_empty(len(queries), 0)
    place = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), bank_block):
        block = F.normalize(bank[start : start + bank_block].float(), dim=1)
        similarity, index = (queries @ block.T).topk(min(k, len(block)))
        best, place = torch.cat([best, similarity], 1), torch.cat([place, index + start], 1)
        best, kept = best.topk(min(k, best.shape[1]))
        place = place.gather(1, kept)
    return best, place


@torch.no_grad()
def extract_features(model: BaseModel, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """The backbone's last feature map, averaged over positions, of every image of a dataset.

    The model's mode is the caller's. Several processes share the work and all get the result.

    Args:
        model: Has ``backbone`` and ``data_preprocessor``.
        loader: In the order of its dataset (``DefaultSampler(shuffle=False)``), with labels.

    Returns:
        Features (N, C) in float32 and labels (N,).
    """
    model = get_ori_model(model)
    features, labels = [], []
    for data in loader:
        data = model.data_preprocessor(data, False)
        outs = model.backbone(data['inputs'])
        maps = [out for out in outs if out.ndim == 4]  # a supervised Mobile-Former returns tokens too
        features.append((maps[-1].mean((2, 3)) if maps else outs[-1]).float())
        labels.append(torch.cat([sample.gt_label for sample in data['data_samples']]).to(features[-1].device))
    size = len(loader.dataset)
    # Each process had every n-th image, and some had one twice at the end.
    return tuple(
        torch.stack(dist.all_gather(torch.cat(each)), dim=1).flatten(0, 1)[:size] for each in (features, labels)
    )


def knn_accuracy(
    queries: tuple[Tensor, Tensor],
    bank: tuple[Tensor, Tensor],
    ks: Sequence[int] = (20, 200),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Top-1 accuracy in %; several processes, which all have the same features, share the work.

    Args:
        queries: Features (Q, C) and labels (Q,).
        bank: Features (B, C) and labels (B,).
        ks: Numbers of neighbors.
        temperature: T.

    Returns:
        ``knn/top1_k<k>`` per k.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    features, labels = (each[rank::world_size] for each in queries)
    accuracy = {}
    for k, predicted in knn_predict(features, *bank, ks=ks, temperature=temperature).items():
        correct = (predicted == labels).sum()
        dist.all_reduce(correct)
        accuracy[f'knn/top1_k{k}'] = 100 * correct.item() / len(queries[0])
    return accuracy
