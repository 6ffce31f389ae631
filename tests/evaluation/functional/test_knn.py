import resource

import pytest
import torch
import torch.nn.functional as F

from qbheat_mm.evaluation.functional.knn import knn_accuracy, knn_predict


def brute_force(queries, bank, labels, k, temperature, num_classes):
    """The definition, a query at a time, in float64."""
    predictions = []
    for query in queries.double():
        similarity = F.cosine_similarity(query[None], bank.double())
        order = similarity.argsort(descending=True)[:k]
        votes = torch.zeros(num_classes, dtype=torch.float64)
        for i in order:
            votes[labels[i]] += torch.exp(similarity[i] / temperature)
        predictions.append(votes.argmax())
    return torch.stack(predictions)


@pytest.mark.parametrize(('query_block', 'bank_block'), [(1024, 65536), (70, 128), (64, 90)])
def test_blocks_agree_with_brute_force_on_a_thousand_features(generator, query_block, bank_block):
    bank = torch.randn(1000, 24, generator=generator)
    labels = torch.randint(10, (1000,), generator=generator)
    queries = torch.randn(150, 24, generator=generator)
    predictions = knn_predict(queries, bank, labels, (20, 200), 0.07, query_block, bank_block)
    for k, predicted in predictions.items():
        assert torch.equal(predicted, brute_force(queries, bank, labels, k, 0.07, 10))
    assert not torch.equal(predictions[20], predictions[200])


def test_no_more_similarities_than_a_block_at_a_time(generator, monkeypatch):
    sizes = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, 'topk', lambda self, k: sizes.append(self.numel()) or topk(self, k))
    bank, labels = torch.randn(500, 8, generator=generator), torch.randint(3, (500,), generator=generator)
    knn_predict(bank, bank, labels, (5,), query_block=16, bank_block=100)
    assert max(sizes) == 16 * 100


def test_the_most_similar_neighbor_outvotes_many_at_a_low_temperature():
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]])
    assert knn_predict(query, bank, labels, (3,), temperature=0.07)[3].item() == 0
    assert knn_predict(query, bank, labels, (3,), temperature=10.0)[3].item() == 1
    assert knn_predict(query, bank, labels, (3,), temperature=1e-3)[3].item() == 0  # nothing overflows


def test_accuracy_is_in_percent():
    bank = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    queries = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 0])
    assert knn_accuracy(queries, bank, ks=(2,)) == {'knn/top1_k2': 75.0}


def test_a_bank_smaller_than_k_is_refused():
    with pytest.raises(ValueError, match=r'k=200 needs at least as many labeled features; the bank has 9'):
        knn_predict(torch.ones(1, 2), torch.ones(9, 2), torch.zeros(9, dtype=torch.long))


@pytest.mark.slow
def test_a_hundred_thousand_features_fit_easily(generator):
    """At the width of 285m; the docstring does the arithmetic for ImageNet-1k."""
    bank = torch.randn(100_000, 160, generator=generator)
    labels = torch.randint(1000, (100_000,), generator=generator)
    queries = bank[:3000] + 0.1 * torch.randn(3000, 160, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predicted = knn_predict(queries, bank, labels)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert (predicted[20] == labels[:3000]).float().mean() > 0.99
    assert grown < 1e9, 'the full matrix of similarities alone takes 1.2 GB'
