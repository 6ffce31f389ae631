import itertools

import numpy as np
import pytest
import torch
from helpers.models import build_qbheat, qbheat_config, samples_at
from mmpretrain.registry import MODELS
from torch.utils._python_dispatch import TorchDispatchMode

from qbheat_mm.datasets import QuarterMask
from qbheat_mm.models.selfsup.qbheat import crop_quarter

CORNERS = list(itertools.product((0, 2), (0, 2)))


def train(model, steps: int = 30, rate: float = 1e-2) -> list[float]:
    """Losses of a few steps on one batch."""
    images, samples = torch.randn(4, 3, 64, 64), samples_at(CORNERS)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    losses = []
    for _ in range(steps):
        loss = model.loss(images, samples)['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_crop_blocks_is_slicing(memory_format):
    images = torch.randn(3, 3, 16, 16).to(memory_format=memory_format)
    origin = torch.tensor([[0, 0], [4, 1], [2, 3]])
    blocks = crop_quarter(images, origin, stride=2)
    for image, (row, column), block in zip(images, 2 * origin, blocks):
        assert torch.equal(block, image[:, row : row + 8, column : column + 8])


@pytest.mark.parametrize('origin', CORNERS)
def test_encoder_sees_the_visible_quarter_alone(origin):
    model = build_qbheat()
    images = torch.randn(2, 3, 64, 64)
    row, column = (16 * cell for cell in origin)
    changed = torch.randn_like(images)
    changed[..., row : row + 32, column : column + 32] = images[..., row : row + 32, column : column + 32]
    origins = torch.tensor([origin, origin])
    assert torch.equal(model.encode_visible(images, origins), model.encode_visible(changed, origins))


@pytest.mark.parametrize('origin', [*CORNERS, (1, 1)])
def test_masked_is_the_rest(origin):
    model = build_qbheat()
    expected = np.ones((4, 4), bool)
    expected[origin[0] : origin[0] + 2, origin[1] : origin[1] + 2] = False
    assert np.array_equal(model._masked(torch.tensor([origin])).view(4, 4).numpy(), expected)
    assert np.array_equal(model._hidden(torch.tensor([origin]))[0].numpy(), np.flatnonzero(expected))


def test_loss_reaches_every_part():
    model = build_qbheat()
    model(torch.randn(4, 3, 64, 64), samples_at(CORNERS), mode='loss')['loss'].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # The last stage's biases before a softmax over positions cancel; nothing else is without a gradient.
    assert [name for name in without if 'neck' in name or 'head' in name or '.0.weight' in name] == []


def test_a_few_steps_on_one_batch_reduce_the_loss():
    losses = train(build_qbheat())
    assert losses[-1] < 0.8 * losses[0]


def test_predict_keeps_the_visible_pixels_and_the_colors():
    model = build_qbheat().eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)  # BGR, as loaded
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples_at([(0, 2)])), False)
    (sample,) = model(**data, mode='predict')
    rgb = images[0].flip(0).float()
    torch.testing.assert_close(sample.reconstruction[:, :32, 32:], rgb[:, :32, 32:], rtol=0, atol=1e-3)
    assert not torch.allclose(sample.reconstruction[:, 32:], rgb[:, 32:], atol=1)
    assert sample.reconstruction.min() >= 0
    assert sample.reconstruction.max() <= 255
    assert 0.9 < sample.constant_loss < 1.1  # normalized patches


@pytest.mark.parametrize(('size', 'remedy'), [(200, '192 or 224'), (65, '64 or 96'), (20, '32')])
def test_size_without_whole_quarters_is_refused_with_those_that_would_do(size, remedy):
    with pytest.raises(ValueError, match=remedy):
        MODELS.build(qbheat_config(img_size=size))


def test_parts_that_do_not_fit_are_refused():
    config = qbheat_config()
    config['neck']['in_channels'] = 7
    with pytest.raises(ValueError, match=r'20 channels, but neck\.in_channels=7'):
        MODELS.build(config)
    config = qbheat_config()
    config['head']['decoder']['in_channels'] = 7
    with pytest.raises(ValueError, match=r'20 channels, but head\.decoder\.in_channels=7'):
        MODELS.build(config)
    config = qbheat_config()
    config['backbone']['output_stride'] = 32
    with pytest.raises(ValueError, match='1 x 1 features, but patch_size=16'):
        MODELS.build(config)


def test_vision_transformer_without_a_map_is_refused_with_the_option():
    config = qbheat_config()
    config['backbone'] = dict(type='VisionTransformer', arch='deit-tiny', img_size=32, patch_size=16)
    with pytest.raises(ValueError, match="out_type='featmap'"):
        MODELS.build(config)


def test_pipeline_and_model_must_agree():
    model = build_qbheat()
    with pytest.raises(ValueError, match='built for 64 px'):
        model.loss(torch.randn(1, 3, 96, 96), samples_at([(0, 0)]))
    with pytest.raises(KeyError, match='QuarterMask'):
        model.loss(torch.randn(1, 3, 64, 64), [type(samples_at([(0, 0)])[0])()])


# --- Options through the whole model ---------------------------------------------------------------------------------


@pytest.mark.parametrize('mixer', ['attention', 'local'])
def test_without_an_equation_every_decoder_trains_and_the_neck_learns_nothing(mixer):
    model = build_qbheat(neck=dict(scheme='none'), decoder=dict(mixer=mixer))
    assert list(model.neck.parameters()) == []
    assert list(model.neck.state_dict()) == []
    losses = train(model)
    assert losses[-1] < 0.9 * losses[0]
    assert all(model.backbone.stem[0].weight.grad.flatten(1).any(1))  # through the copies


def test_center_is_refused_where_its_margin_is_not_whole_cells():
    QuarterMask(input_size=256, visible='center')
    with pytest.raises(ValueError, match=r'margin of 3\.5 cells at input_size=224'):
        QuarterMask(input_size=224, visible='center')


@pytest.mark.parametrize('visible', ['random', 'center'])
def test_nothing_visible_enters_the_loss(visible):
    np.random.seed(3)
    model = build_qbheat().eval()  # BatchNorm would mix the images
    samples = samples_at([QuarterMask(input_size=64, visible=visible)({})['visible_origin'] for _ in range(6)])
    images = torch.randn(6, 3, 64, 64)
    origin = model._origins(images, samples)
    prediction = model.neck(model.encode_visible(images, origin), origin)
    visible_changed, hidden_changed = images.clone(), images.clone()
    for i, (row, column) in enumerate(16 * origin):
        block = (i, slice(None), slice(row, row + 32), slice(column, column + 32))
        visible_changed[block] = torch.randn(3, 32, 32)
        hidden_changed[i] += torch.randn(3, 64, 64)
        hidden_changed[block] = images[block]
    loss, visible_loss, hidden_loss = (
        model.head.loss(prediction, target, model._hidden(origin))['loss']
        for target in (images, visible_changed, hidden_changed)
    )
    assert torch.equal(loss, visible_loss)
    assert not torch.equal(loss, hidden_loss)
    assert torch.equal(loss, model.loss(images, samples)['loss'])


@pytest.mark.parametrize('visible', ['random', 'center', 'top_right'])
def test_every_block_trains(visible):
    model = build_qbheat()
    mask = QuarterMask(input_size=64, visible=visible)
    model.loss(torch.randn(8, 3, 64, 64), samples_at([mask({})['visible_origin'] for _ in range(8)]))['loss'].backward()
    assert all(parameter.grad.any() for parameter in model.neck.parameters())


def test_penalty_is_a_loss_by_its_own_name():
    model = build_qbheat(neck=dict(commute='penalty'))
    for parameter in model.neck.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    losses = model.loss(torch.randn(4, 3, 64, 64), samples_at(CORNERS))
    assert set(losses) == {'loss', 'loss_commute'}
    total, logged = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss'] + losses['loss_commute'])
    assert losses['loss_commute'] > 0.1
    assert set(logged) >= {'loss', 'loss_commute'}
    assert set(build_qbheat().loss(torch.randn(4, 3, 64, 64), samples_at(CORNERS))) == {'loss'}


@pytest.mark.parametrize('scheme', ['euler', 3, 'exp'])
@pytest.mark.parametrize('commute', ['none', 'penalty', 'shared_basis'])
def test_propagators_stay_in_float32_under_autocast(scheme, commute):
    model = build_qbheat(neck=dict(scheme=scheme, commute=commute))
    for parameter in model.neck.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images, samples = torch.randn(4, 3, 64, 64), samples_at(CORNERS)
    origin = model._origins(images, samples)
    expected = [each.detach() for each in model.neck.propagators()]
    with torch.autocast('cpu', torch.bfloat16):
        latent = model.encode_visible(images, origin)
        propagators = model.neck.propagators()
        features = model.neck(latent, origin)
        losses = model.loss(images, samples)
        sum(losses.values()).backward()
    assert latent.dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 and torch.equal(each, full) for each, full in zip(propagators, expected))
    assert torch.equal(features, model.neck(latent.float(), origin))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.neck.parameters())
    if commute == 'shared_basis':
        a, b = (each[0] for each in model.neck.generators())
        assert (a @ b - b @ a).norm() < 1e-5 * (a @ b).norm()


class Recorder(TorchDispatchMode):
    """The operators that run, and those among them whose result or shape the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.waits = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.removeprefix('aten::')
        self.names.append(name)
        by_mask = name in ('index', 'index_put', 'index_put_', '_index_put_impl_') and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in WAITING:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


WAITING = ('_local_scalar_dense', 'item', 'nonzero', 'masked_select', 'is_nonzero', 'equal', 'unique_consecutive')


def recorded(model, count: int) -> Recorder:
    """What the loss of ``count`` images and its gradient run."""
    model.zero_grad()
    images, samples = torch.randn(count, 3, 64, 64), samples_at((CORNERS * count)[:count])
    with Recorder() as recorder:
        sum(model.loss(images, samples).values()).backward()
    return recorder


@pytest.mark.parametrize(
    'neck', [{}, dict(direction='separate'), dict(commute='penalty'), dict(scheme='exp', commute='shared_basis')]
)
@pytest.mark.parametrize('mixer', ['attention', 'local'])
def test_loss_does_not_wait_for_the_device(neck, mixer):
    model = build_qbheat(neck=neck, decoder=dict(mixer=mixer))
    small, large = recorded(model, 4), recorded(model, 12)
    assert small.waits == []
    assert small.names == large.names  # no loop over the samples
    assert len(small.names) > 100


def test_waiting_is_noticed():
    with Recorder() as recorder:
        values = torch.arange(4)
        values[values > 1]
        float(values[0])
    assert recorder.waits == ['index', '_local_scalar_dense']
