from itertools import product
from types import SimpleNamespace

import pytest
import torch
from helpers.models import build_qbheat, samples_at

from qbheat_mm.engine.hooks import CompileHook
from qbheat_mm.models import HeatNeck


def test_compiled_parts_compute_the_same_under_the_same_names():
    torch.compiler.reset()
    model, images, samples = build_qbheat(), torch.randn(2, 3, 64, 64), samples_at([(0, 2), (2, 0)])
    keys, expected = list(model.state_dict()), model.loss(images, samples)['loss']
    expected.backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    CompileHook(backend=backend).before_train(SimpleNamespace(model=model))
    model.zero_grad()
    loss = model.loss(images, samples)['loss']
    loss.backward()
    assert len(graphs) == 4  # encoder, neck, decoder and loss, each in one piece
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


SCHEMES = [
    ('none', 'signed', 'none'),
    *product(('euler', 4, 'exp'), ('signed', 'separate'), ('none', 'penalty', 'shared_basis')),
]


@pytest.mark.parametrize('mixer', ['attention', 'local'])
def test_every_part_is_one_graph_and_new_quarters_need_no_other(mixer):
    torch.compiler.reset()
    model, graphs = build_qbheat(decoder=dict(mixer=mixer)), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    CompileHook(backend=backend, fullgraph=True).before_train(SimpleNamespace(model=model))
    for origin in ((0, 2), (2, 0), (1, 1)):
        loss = model.loss(torch.randn(2, 3, 64, 64), samples_at([origin, (0, 0)]))['loss']
        loss.backward()
    assert torch.isfinite(loss)
    assert len(graphs) == 4


@pytest.mark.parametrize(('scheme', 'direction', 'commute'), SCHEMES)
def test_every_scheme_of_the_neck_is_one_graph(scheme, direction, commute):
    torch.compiler.reset()
    neck = HeatNeck(6, scheme, direction, commute)
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latent, origin = torch.randn(2, 6, 2, 2), torch.tensor([(0, 2), (1, 0)])
    compiled = torch.compile(lambda *args: (neck(*args), neck.losses()), fullgraph=True, backend='eager')
    features, losses = compiled(latent, origin)
    torch.testing.assert_close(features, neck(latent, origin))
    assert losses.keys() == neck.losses().keys()


def test_an_unknown_part_is_refused():
    with pytest.raises(AttributeError, match='encoder'):
        CompileHook(['encoder']).before_train(SimpleNamespace(model=build_qbheat()))
