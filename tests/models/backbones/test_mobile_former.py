import copy

import numpy as np
import pytest
import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from mmpretrain.registry import MODELS
from torch import nn

import qbheat_mm  # noqa: F401
from qbheat_mm.checkpoint import CheckpointError
from qbheat_mm.models import MobileFormer
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS, DyReLU

SIZES = tuple(ARCH_SETTINGS)
# Every kind of block, with groups, in three stages.
TINY = dict(
    stem_channels=8,
    token_dims=32,
    num_tokens=3,
    groups=2,
    blocks=[(2, 8, 1, 0), (2, 16, 2, 2), (2, 16, 1, 2), (2, 32, 2, 2), (3, 48, 1, 2), (2, 64, 2, 2)],
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomise_norms(model):
    """Give every norm statistics and weights of its own, as training would."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def relative_error(out, expected):
    return ((out - expected).norm() / expected.norm()).item()


def loss_of(outs):
    """Depends on every value of every output."""
    return sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outs)


def step(model, image):
    """The outputs and all gradients of one training step."""
    model.zero_grad()
    outs = model(image)
    loss_of(outs).backward()
    return outs, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_steps_agree(found, expected):
    for out, expected_out in zip(found[0], expected[0], strict=True):
        assert relative_error(out, expected_out) < 1e-5
    # A gradient that is zero by construction (before a norm) is noise of the others' size in rounding.
    assert relative_error(found[1], expected[1]) < 1e-4


@pytest.mark.parametrize('size', SIZES)
def test_any_size_from_32_px(size):
    num_stages = 3 if size == '285m' else 4
    model = MobileFormer(size, out_indices=range(num_stages), out_tokens=True).eval()
    settings = ARCH_SETTINGS[size]
    for height, width in ((32, 32), (33, 57), (64, 40)):
        *maps, tokens = model(torch.randn(2, 3, height, width))
        for stride, out in zip((4, 8, 16, 32), maps, strict=False):
            assert out.shape[2:] == (-(-height // stride), -(-width // stride))
        assert len(maps) == num_stages
        assert maps[-1].shape[1] == settings['blocks'][-1][1]
        assert tokens.shape == (2, settings['num_tokens'], settings['token_dims'])


@pytest.mark.parametrize('size', SIZES)
def test_images_of_a_batch_do_not_meet_in_eval_mode(size):
    model = randomise_norms(MobileFormer(size, out_tokens=True)).eval()
    images = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    for out, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(out[1:2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', SIZES)
def test_channels_last_and_bf16_agree_with_eager(size):
    model = randomise_norms(MobileFormer(size, out_tokens=True)).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast('cpu', torch.bfloat16):
            half = model(image)
        last = model.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    for out, out_half, out_last in zip(expected, half, last, strict=True):
        assert relative_error(out_last, out) < 1e-5
        assert 0 < relative_error(out_half.float(), out) < 0.05  # bf16 has 8 bits


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('autocast', [False, True])
def test_every_parameter_gets_a_finite_gradient_at_32_px(size, autocast):
    model = randomise_norms(MobileFormer(size, out_tokens=True))
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        outs = model(torch.randn(4, 3, 32, 32))
    loss_of(outs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradients_agree_in_both_memory_formats():
    model = randomise_norms(MobileFormer(TINY, out_tokens=True))
    image = torch.randn(4, 3, 48, 80)
    expected = step(model, image)
    found = step(model.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last))
    assert_steps_agree(found, expected)


def test_gradients_are_those_of_finite_differences():
    model = randomise_norms(MobileFormer(TINY, out_tokens=True)).double().eval()
    image = torch.randn(1, 3, 32, 32, dtype=torch.double, requires_grad=True)
    direction = torch.randn_like(image)
    loss_of(model(image)).backward()
    h = 1e-6
    with torch.no_grad():
        slope = (loss_of(model(image + h * direction)) - loss_of(model(image - h * direction))) / (2 * h)
    torch.testing.assert_close((image.grad * direction).sum(), slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_dynamic_relu_is_the_maximum_of_two_lines(dtype, memory_format):
    act = DyReLU(32, 8)
    token = torch.randn(3, 32)
    x = torch.randn(3, 8, 5, 7).to(dtype).to(memory_format=memory_format)
    weight = torch.randn(x.shape).to(dtype)

    def results(function):
        inputs = x.clone().requires_grad_(), token.clone().requires_grad_()
        out = function(*inputs)
        return out, *torch.autograd.grad(out, (*inputs, *act.parameters()), weight)

    def plainly(x, token):
        theta = ((act.hyper(token) + 3).clamp(0, 6) / 6).to(x.dtype)[..., None, None]
        return torch.maximum((2 * (theta[:, :8] - 0.5) + 1) * x, 2 * (theta[:, 8:] - 0.5) * x)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for out, expected in zip(results(act), results(plainly), strict=True):
        assert out.dtype == expected.dtype
        assert relative_error(out.float(), expected.float()) < tolerance
    assert act(x, token).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(backend):
    arch = dict(TINY, blocks=TINY['blocks'][:3]) if backend == 'inductor' else TINY  # which takes minutes a block
    model = randomise_norms(MobileFormer(arch, out_tokens=True))
    image = torch.randn(2, 3, 48, 64)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_steps_agree(step(compiled, image), step(copy.deepcopy(model), image))
    model.eval()
    with torch.no_grad():
        for out, expected in zip(compiled(image), copy.deepcopy(model)(image), strict=True):
            assert relative_error(out, expected) < 1e-5


def check_onnx(model, path, shapes):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        model, (torch.randn(2, 3, 64, 96),), dynamo=True, dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    (image,) = session.get_inputs()
    for shape in shapes:
        image = torch.randn(shape)
        with torch.no_grad():
            expected = model(image)
        outs = session.run(None, {image.name: image.numpy()})
        for out, expected_out in zip(outs, expected, strict=True):
            assert out.shape == expected_out.shape
            assert np.abs(out - expected_out.numpy()).max() <= 1e-4 * expected_out.abs().max().item()


SHAPES = [(2, 3, 64, 96), (1, 3, 32, 32), (3, 3, 33, 57), (1, 3, 160, 128)]


@pytest.mark.parametrize('training', [False, True])
def test_is_traced_without_the_gradient_of_its_own(training):
    model = randomise_norms(MobileFormer(TINY, out_tokens=True)).train(training)
    image = torch.randn(2, 3, 64, 64)
    traced = torch.jit.trace(model, image, check_trace=False)
    assert '_DynamicMax' not in str(traced.inlined_graph)
    for out, expected in zip(traced(image), model(image), strict=True):
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-3)


def test_the_classic_exporter_gives_the_same(tmp_path):
    """`dynamo=False`, which mmdeploy uses."""
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    model = randomise_norms(MobileFormer(TINY, out_tokens=True)).eval()
    image = torch.randn(2, 3, 64, 64)
    torch.onnx.export(model, (image,), tmp_path / 'model.onnx', input_names=['image'], opset_version=18, dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    with torch.no_grad():
        for out, expected in zip(session.run(None, dict(image=image.numpy())), model(image), strict=True):
            np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.slow
def test_exports_to_onnx(tmp_path):
    model = randomise_norms(MobileFormer(TINY, out_indices=(0, 1, 2), out_tokens=True)).eval()
    check_onnx(model, tmp_path / 'model.onnx', SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize('size', ['26m', '285m'])
def test_full_sizes_export_to_onnx(size, tmp_path):
    model = randomise_norms(MobileFormer(size, out_tokens=True)).eval()
    check_onnx(model, tmp_path / 'model.onnx', [*SHAPES, (1, 3, 224, 224)])


@pytest.mark.parametrize('size', [size for size in SIZES if size != '285m'])
def test_output_stride_16_keeps_the_last_resolution(size):
    model = randomise_norms(MobileFormer(size)).eval()
    dense = MobileFormer(size, output_stride=16).eval()
    dense.load_state_dict(model.state_dict())  # the same weights fit
    assert model(torch.zeros(1, 3, 64, 96))[0].shape[2:] == (2, 3)
    assert dense(torch.zeros(1, 3, 64, 96))[0].shape[2:] == (4, 6)
    assert MobileFormer(size, output_stride=32).stages[-1][0].mobile.depthwise1[0].stride == (2, 2)


def test_a_detector_at_stride_32_sees_the_features_of_a_pre_training_at_stride_16():
    """In all but the last stage, with the same weights."""
    native = randomise_norms(MobileFormer('52m', out_indices=(0, 1, 2, 3))).eval()
    dense = MobileFormer('52m', out_indices=(0, 1, 2, 3), output_stride=16).eval()
    dense.load_state_dict(native.state_dict())
    image = torch.rand(1, 3, 64, 96)
    *same, last = zip(native(image), dense(image), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert last[0].shape[2:] != last[1].shape[2:]


def test_285m_halves_a_quarter_to_whole_cells():
    model = MobileFormer('285m').eval()
    assert model(torch.zeros(1, 3, 224, 224))[0].shape[2:] == (14, 14)
    assert model(torch.zeros(1, 3, 112, 112))[0].shape[2:] == (7, 7)


def test_out_indices_select_stages_and_stop_early():
    full = randomise_norms(MobileFormer('52m', out_indices=(0, 1, 2, 3), out_tokens=True)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = full(image)
        for out_indices, positions in (((1,), [1]), ((-1, 0), [0, 3]), ((2, 1), [1, 2])):
            part = MobileFormer('52m', out_indices=out_indices).eval()
            part.load_state_dict(full.state_dict())
            outs = part(image)
            assert len(outs) == len(positions)
            for out, position in zip(outs, positions, strict=True):
                assert torch.equal(out, expected[position])
    part = MobileFormer('52m', out_indices=(1,))
    loss_of(part(image.expand(2, -1, -1, -1))).backward()
    for name, parameter in part.named_parameters():  # as DDP with find_unused_parameters=False asks for
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not any(parameter.requires_grad for parameter in part.stages[2].parameters())


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3])
def test_frozen_stages_stay_bit_identical_in_training(frozen_stages):
    model = randomise_norms(MobileFormer(TINY, out_tokens=True, frozen_stages=frozen_stages))
    model.eval()
    model.train()
    before = copy.deepcopy(model.state_dict())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    outs = model(torch.randn(4, 3, 64, 64))
    if trained:
        optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
        loss_of(outs).backward()
        optimizer.step()
    frozen = ['stem.'] * (frozen_stages >= 0) + ['tokens'] * (frozen_stages > 0)
    frozen += [f'stages.{i}.' for i in range(frozen_stages)]
    frozen += ['last_local_to_global.'] * (frozen_stages == 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(tuple(frozen)), name


def test_norm_eval_keeps_statistics_but_trains_weights():
    model = MobileFormer(TINY, norm_eval=True).eval().train()
    assert model.training
    before = copy.deepcopy(model.state_dict())
    loss_of(model(torch.randn(2, 3, 64, 64))).backward()
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
    assert model.stem[1].weight.grad.any()


def test_drop_path_rises_linearly_and_skips_residual_branches():
    model = randomise_norms(MobileFormer(TINY, drop_path_rate=0.5))
    rates = [block.mobile.drop_path.drop_prob for stage in model.stages for block in stage if hasattr(block, 'mobile')]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    mobile = model.stages[0][2].mobile
    mobile.drop_path.drop_prob = 1 - 1e-9
    x, token = torch.randn(2, 16, 8, 8), torch.randn(2, 32)
    assert torch.equal(mobile.train()(x, token), x)
    assert not torch.allclose(mobile.eval()(x, token), x)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='295m'), "arch='295m' is not one of 508m, 294m"),
        (dict(arch=dict(blocks=[])), r'lacks the field\(s\) num_tokens, stem_channels, token_dims'),
        (dict(arch=dict(TINY, depth=3)), r'unknown field\(s\) depth'),
        (dict(arch=dict(TINY, blocks=[])), 'the first stage needs stride 4'),
        (dict(arch=dict(TINY, blocks=[(2, 8, 1, 0)])), 'end at stride 2; the first stage needs stride 4'),
        (dict(out_indices=(4,)), r'out_indices=\(4,\): this layout has the stages 0 to 3'),
        (dict(out_indices=(-5,)), 'has the stages 0 to 3'),
        (dict(out_indices=()), 'has the stages 0 to 3'),
        (dict(arch='285m', out_indices=(3,)), 'has the stages 0 to 2'),
        (dict(arch='285m', output_stride=32), 'output_stride=32: this layout takes 16'),
        (dict(output_stride=8), 'output_stride=8: this layout takes 32 or 16'),
        (dict(frozen_stages=5), r'frozen_stages=5: this layout takes -1 \(nothing\) to 4'),
        (dict(frozen_stages=-2), 'frozen_stages=-2'),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MobileFormer(**arguments)


def test_pretrained_is_loaded_strictly(tmp_path):
    source = randomise_norms(MobileFormer(TINY))
    state_dict = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    torch.save(dict(state_dict=state_dict), tmp_path / 'good.pth')
    state_dict.pop('backbone.tokens')
    torch.save(dict(state_dict=state_dict), tmp_path / 'bad.pth')

    def build(name, prefix='backbone.'):
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / name), prefix=prefix)
        model = MODELS.build(dict(type='MobileFormer', arch=TINY, init_cfg=init_cfg))
        model.init_weights()
        return model

    loaded = build('good.pth').state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())
    with pytest.raises(CheckpointError, match='missing: tokens'):
        build('bad.pth')
    with pytest.raises(CheckpointError, match=r'nothing under the prefix "encoder\."'):
        build('good.pth', prefix='encoder')
