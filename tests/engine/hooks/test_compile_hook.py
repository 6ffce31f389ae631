from types import SimpleNamespace

import pytest
import torch
from helpers.models import build_qbheat, samples_at

from qbheat_mm.engine.hooks import CompileHook


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
    assert len(graphs) == 2  # the encoder and the decoder, each in one piece
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_an_unknown_part_is_refused():
    with pytest.raises(AttributeError, match='encoder'):
        CompileHook(['encoder']).before_train(SimpleNamespace(model=build_qbheat()))
