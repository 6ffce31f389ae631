import pytest
import torch
from mmengine import logging as mmengine_logging

from qbheat_mm import compat  # makes mmcv.ops importable

module = pytest.importorskip('mmcv.ops.multi_scale_deform_attn')


@pytest.fixture
def messages(monkeypatch):
    """What is logged; the once-only warning starts afresh."""
    logged = []
    monkeypatch.setattr(mmengine_logging, 'print_log', lambda message, **kwargs: logged.append(message))
    compat.warn_of_slow_attention.cache_clear()
    yield logged
    compat.warn_of_slow_attention.cache_clear()


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Let mmcv believe that tensors lie on a device with the compiled op, as on a GPU."""

    def pretend():
        monkeypatch.setattr(module, 'IS_MLU_AVAILABLE', True)
        monkeypatch.setattr(torch.Tensor, 'is_mlu', True, raising=False)

    return pretend


def attend(attention, dtype=torch.float32):
    """Output and gradients on two levels, 4 x 6 and 2 x 3."""
    torch.manual_seed(0)
    value = torch.randn(2, 30, 32, requires_grad=True)
    query = torch.randn(2, 5, 32, requires_grad=True)
    with torch.autocast('cpu', torch.float16, enabled=dtype == torch.float16):
        output = attention(
            query,
            value=value,
            reference_points=torch.rand(2, 5, 2, 2),
            spatial_shapes=torch.tensor([[4, 6], [2, 3]]),
            level_start_index=torch.tensor([0, 24]),
        )
    output.float().square().sum().backward()
    return output.detach(), value.grad, query.grad


@pytest.fixture
def attention():
    torch.manual_seed(1)
    attention = module.MultiScaleDeformableAttention(32, 4, 2, 3, batch_first=True).eval()
    torch.nn.init.normal_(attention.sampling_offsets.weight)
    return attention


@pytest.mark.skipif(compat.has_compiled_ops(), reason='the compiled op is there')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_gpu_without_compiled_ops_gives_what_a_cpu_gives(attention, pretend_gpu, messages, dtype):
    expected = attend(attention, dtype)
    assert messages == []
    pretend_gpu()
    for _ in range(2):
        for found, wanted in zip(attend(attention, dtype), expected, strict=True):
            assert torch.equal(found, wanted)
    assert len(messages) == 1
    assert compat.how_to_build_ops() in messages[0]


@pytest.mark.skipif(compat.has_compiled_ops(), reason='the compiled op is there')
def test_without_the_patch_it_is_an_error(attention, pretend_gpu, monkeypatch):
    class Original(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            return module.ext_module.ms_deform_attn_forward(*args)

    monkeypatch.setattr(module, 'MultiScaleDeformableAttnFunction', Original)
    pretend_gpu()
    with pytest.raises(RuntimeError, match='ms_deform_attn_forward'):
        attend(attention)


def test_compiled_ops_are_left_alone(monkeypatch):
    marker = object()
    monkeypatch.setattr(compat, 'has_compiled_ops', lambda: True)
    monkeypatch.setattr(module, 'MultiScaleDeformableAttnFunction', marker)
    assert not compat.use_pytorch_deformable_attention()
    assert module.MultiScaleDeformableAttnFunction is marker


@pytest.mark.skipif(
    not (compat.has_compiled_ops() and torch.cuda.is_available()), reason='needs a GPU and the compiled op'
)
def test_the_compiled_deformable_attention_is_taken_and_gives_what_pytorch_gives():
    assert module.MultiScaleDeformableAttnFunction.__module__ == module.__name__
    torch.manual_seed(0)
    shapes, starts = torch.tensor([[4, 6], [2, 3]]), torch.tensor([0, 24]).cuda()
    value, locations, weights = torch.randn(2, 30, 4, 8), torch.rand(2, 5, 4, 2, 3, 2), torch.rand(2, 5, 4, 2, 3)
    inputs = [each.cuda().requires_grad_() for each in (value, locations, weights)]
    expected = module.multi_scale_deformable_attn_pytorch(inputs[0], shapes.tolist(), *inputs[1:])
    found = module.MultiScaleDeformableAttnFunction.apply(inputs[0], shapes.cuda(), starts, *inputs[1:], 64)
    for one, other in zip(with_gradients(found, inputs), with_gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def with_gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and its gradients."""
    return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]
