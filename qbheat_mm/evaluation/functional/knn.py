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

from .features import extract_features


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

    A neighbor votes for its class with exp(s / T), s the cosine similarity; all votes are divided by exp(1 / T), so
    that none overflows. At most ``query_block * bank_block`` similarities are in memory, by default 0.27 GB in
    float32. For ImageNet-1k (a bank of 1.28 M, 50,000 queries) and 160 channels in float32 the bank takes 0.82 GB and
    the queries 0.03 GB; the full matrix would take 256 GB.

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
    """The k largest similarities (q, k) of normalized queries, in descending order, and their indices in the bank."""
    best = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), bank_block):
        block = F.normalize(bank[start : start + bank_block].float(), dim=1)
        similarity, index = (queries @ block.T).topk(min(k, len(block)))
        best, indices = torch.cat([best, similarity], 1), torch.cat([indices, index + start], 1)
        best, kept = best.topk(min(k, best.shape[1]))
        indices = indices.gather(1, kept)
    return best, indices


def collect_features(model: BaseModel, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """Extract the pooled features of all images of a dataset; several processes share the work.

    Args:
        model: Has ``backbone`` and ``data_preprocessor``; its mode is left as it is.
        loader: In the order of its dataset (``DefaultSampler(shuffle=False)``), with labels.

    Returns:
        Features (N, C) in float32 and labels (N,), the same in every process.
    """
    model = get_ori_model(model)
    batches = zip(*extract_features(model.backbone, model.data_preprocessor, loader, pool=True), strict=True)
    # Each process had every n-th image, and the sampler repeats images where the processes would have unequal numbers.
    return tuple(
        torch.stack(dist.all_gather(torch.cat(each)), dim=1).flatten(0, 1)[: len(loader.dataset)] for each in batches
    )


def knn_accuracy(
    queries: tuple[Tensor, Tensor],
    bank: tuple[Tensor, Tensor],
    ks: Sequence[int] = (20, 200),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Top-1 accuracy of k-NN in %; several processes, all with the same features, share the work.

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
