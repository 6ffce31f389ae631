import json

import numpy as np
import pytest
import torch
from helpers.models import load_script
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image
from torch import nn

from qbheat_mm.checkpoint import CheckpointError
from qbheat_mm.heat import CommutingGenerators, propagator

tool = load_script('tools/analysis_tools/heat_hypothesis.py')

ARCH = dict(stem_channels=8, token_dims=16, num_tokens=2, blocks=[(2, 8, 2, 0), (2, 12, 2, 2), (2, 12, 1, 2)])
CONFIG = f"""
custom_imports = dict(imports=['qbheat_mm'], allow_failed_imports=False)
data_preprocessor = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True)
model = dict(type='QBHeat', backbone=dict(type='MobileFormer', arch={ARCH}))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """30 smooth images in a tree."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(30):
        path = root / f'group{i % 3}' / f'{i}{(".png", ".jpg", ".webp")[i % 3]}'
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((96, 72), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return Config.fromfile(path)


@pytest.fixture
def backbone(config):
    torch.manual_seed(1)
    backbone = MODELS.build(config.model.backbone)
    backbone.init_weights()
    return backbone


@pytest.fixture
def checkpoint(backbone, tmp_path):
    """A whole model: a backbone, a neck, and a head that nobody asks for."""
    state_dict = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    state_dict |= {
        'neck.generator_x': torch.diag(torch.arange(12.0)),
        'neck.generator_y': 2 * torch.eye(12),
        'head.weight': torch.ones(1),
    }
    torch.save(dict(state_dict=state_dict), tmp_path / 'model.pth')
    return tmp_path / 'model.pth'


def _batches(config, folder, size=64, count=30):
    preprocessor = tool.build_preprocessor(config)
    return [tool.Batches(half, preprocessor, batch_size=8) for half in tool.split_images(folder, size, count)]


def _noise(count, seed, channels=6, side=8):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


# --- images --------------------------------------------------------------------------------------------------------


def test_halves_are_disjoint_and_follow_from_the_seed(folder):
    fit, held_out = tool.split_images(folder, 64, 21, seed=3)
    assert (len(fit), len(held_out)) == (10, 11)
    assert not set(fit.paths) & set(held_out.paths)
    assert tool.split_images(folder, 64, 21, seed=3)[0].paths == fit.paths
    assert tool.split_images(folder, 64, 21, seed=4)[0].paths != fit.paths
    fit, held_out = tool.split_images(folder, 64, 1000)
    assert len({*fit.paths, *held_out.paths}) == 30


@pytest.mark.parametrize('to_rgb', [True, False])
def test_images_arrive_as_the_model_is_used_to(tmp_path, to_rgb):
    red = np.zeros((40, 80, 3), dtype=np.uint8)
    red[..., 0] = 200
    for i in range(4):
        Image.fromarray(red).save(tmp_path / f'{i}.png')
    settings = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=to_rgb)
    (batch,) = _batches(Config(dict(data_preprocessor=settings)), tmp_path, size=32)[0]
    assert batch.shape == (2, 3, 32, 32)
    color = [200, 0, 0] if to_rgb else [0, 0, 200]
    expected = (torch.tensor(color) - torch.tensor([120, 110, 100])) / torch.tensor([60, 50, 40])
    torch.testing.assert_close(batch.mean((0, 2, 3)), expected)


def test_the_models_own_preprocessor_comes_first():
    settings = [dict(mean=[m] * 3, std=[1.0] * 3) for m in (1.0, 2.0)]
    preprocessor = tool.build_preprocessor(
        Config(dict(data_preprocessor=settings[0], model=dict(data_preprocessor=settings[1])))
    )
    assert preprocessor.mean.flatten().tolist() == [2, 2, 2]


def test_unreadable_folders_and_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere.*--data'):
        tool.split_images(tmp_path / 'nowhere', 64, 10)
    with pytest.raises(FileNotFoundError, match='--data'):
        tool.split_images('', 64, 10)
    with pytest.raises(ValueError, match='0 images from'):
        tool.split_images(tmp_path, 64, 10)
    for i in range(4):
        (tmp_path / f'{i}.jpg').write_bytes(b'not a image')
    with pytest.raises(ValueError, match=r'\d\.jpg" is not a image'):
        tool.split_images(tmp_path, 64, 10)[0][0]


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('whole', [True, False])
def test_load_backbone_reads_whole_models_and_bare_backbones(config, backbone, checkpoint, tmp_path, whole):
    if not whole:
        checkpoint = tmp_path / 'backbone.pth'
        torch.save(backbone.state_dict(), checkpoint)
    loaded = tool.load_backbone(config, checkpoint)
    assert not loaded.training
    for key, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_load_backbone_refuses_what_does_not_fit(config, checkpoint):
    config.model.backbone.arch.token_dims = 32
    with pytest.raises(CheckpointError, match='does not fit MobileFormer'):
        tool.load_backbone(config, checkpoint)


def test_random_backbone_is_untrained_and_reproducible(config, backbone):
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='no_such_file.pth')
    first, second, other = (tool.random_backbone(config, seed) for seed in (0, 0, 1))
    key = 'stem.0.weight'
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], backbone.state_dict()[key])
    assert not first.training


def test_calibration_makes_batch_norms_normalise(config, folder):
    config.model.backbone.frozen_stages = 2  # which keeps them in eval mode otherwise
    backbone = tool.random_backbone(config)
    weights = {key: value.clone() for key, value in backbone.named_parameters()}
    fit, _ = _batches(config, folder)
    outputs = []
    tool.calibrate_batch_norm(backbone, [1000 * torch.randn(2, 3, 64, 64)])  # nothing of it may stay
    tool.calibrate_batch_norm(backbone, fit)
    backbone.stem[1].register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    tool.extract(backbone, fit)
    outputs = torch.cat(outputs).transpose(0, 1).flatten(1)
    torch.testing.assert_close(outputs.mean(1), torch.zeros(8), rtol=0, atol=0.05)
    torch.testing.assert_close(outputs.std(1), torch.ones(8), rtol=0, atol=0.1)
    assert not any(module.training for module in backbone.modules())
    assert all(torch.equal(value, weights[key]) for key, value in backbone.named_parameters())


def test_extract_takes_the_spatial_outputs(config, backbone):
    images = [torch.randn(2, 3, 64, 64), torch.randn(1, 3, 64, 64)]
    config.model.backbone |= dict(out_indices=(0, 1), out_tokens=True)
    several = MODELS.build(config.model.backbone).eval()
    several.load_state_dict(backbone.state_dict())
    last, first = (tool.extract(several, images, level) for level in (-1, 0))
    assert [tuple(batch.shape) for batch in last] == [(2, 12, 8, 8), (1, 12, 8, 8)]
    assert [tuple(batch.shape) for batch in first] == [(2, 8, 16, 16), (1, 8, 16, 16)]
    torch.testing.assert_close(last[0], backbone.eval()(images[0])[0])
    with pytest.raises(ValueError, match=r'MobileFormer gives 2 feature maps.*level=2.*--level'):
        tool.extract(several, images, 2)
    with pytest.raises(ValueError, match='Sequential gives 0 feature maps'):
        tool.extract(nn.Sequential(nn.Flatten()), images)


def test_shuffling_keeps_cells_and_loses_places():
    features = [_noise(3, 0), _noise(2, 1)]
    shuffled = tool.shuffle_positions(features)
    for before, after in zip(features, shuffled, strict=True):
        assert after.shape == before.shape
        assert not torch.equal(after, before)
        for a, b in zip(before.flatten(2), after.flatten(2), strict=True):  # one image, (C, HW)
            order = a[0].argsort()[b[0].argsort().argsort()]
            assert torch.equal(a[:, order], b)  # whole cells moved
    (batch,) = tool.shuffle_positions([torch.arange(16.0).view(1, 1, 4, 4).expand(2, -1, -1, -1)])
    assert not torch.equal(*batch)  # each image in its own order
    assert torch.equal(tool.shuffle_positions(features)[1], shuffled[1])


# --- measuring -------------------------------------------------------------------------------------------------------


def test_measure_tells_a_law_from_none():
    A, B = 0.1 * torch.diag(torch.arange(6.0)), -0.2 * torch.eye(6)
    corner = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    steps_x, steps_y = (torch.stack([propagator(g, d, 'exp') for d in range(8)]) for g in (A, B))
    law = torch.einsum('yij,xjk,nk->niyx', steps_y, steps_x, corner)
    lawful = tool.measure([law[:20]], [law[20:]])
    for field in ('one_cell', 'quarter'):
        assert lawful[field]['x'] == pytest.approx(1, abs=1e-6)
        assert lawful[field]['y'] == pytest.approx(1, abs=1e-6)
        assert lawful[field]['copy_x'] < 0.9
    assert lawful['derivative'] == pytest.approx(1, abs=1e-6)
    shuffled = tool.measure(*(tool.shuffle_positions([half]) for half in (law[:20], law[20:])))
    assert shuffled['one_cell']['y'] < 0.9
    assert shuffled['derivative'] < 0.2
    assert shuffled['effective_rank'] == pytest.approx(lawful['effective_rank'], rel=1e-6)


def test_measure_of_white_noise_is_zero_on_held_out_maps():
    noise = tool.measure([_noise(100, 0)], [_noise(100, 1)])
    r2 = [noise['derivative'], *(noise[field][axis] for field in ('one_cell', 'quarter') for axis in 'xy')]
    assert all(abs(value) < 0.02 for value in r2)
    assert noise['quarter']['copy_x'] == pytest.approx(-1, abs=0.1)
    assert noise['effective_rank'] == pytest.approx(6, abs=0.05)


def test_measure_judges_on_the_held_out_maps():
    features = _noise(3, 0, channels=64)  # so few that the fit looks good to itself
    held_out = torch.cat([_noise(3, 1, channels=32), torch.zeros(3, 32, 8, 8)], dim=1)
    own, other = tool.measure([features], [features]), tool.measure([features], [held_out])
    for field in ('one_cell', 'quarter'):
        assert own[field]['x'] > 0.2
        assert other[field]['x'] < 0
    assert own['derivative'] > 0.2
    assert other['derivative'] < 0
    assert other['effective_rank'] < 32 < own['effective_rank']


def test_features_that_do_not_vary_have_no_r2_and_no_invalid_json():
    report = tool.measure([torch.ones(2, 3, 4, 4)], [torch.ones(2, 3, 4, 4)])
    assert report['one_cell']['x'] is None
    assert 'NaN' not in json.dumps(report)


def test_learned_generators_of_every_kind_of_neck():
    A, B = torch.randn(2, 4, 4)
    found = tool.learned_generators({'neck.generator_x': A, 'neck.generator_y': B, 'backbone.w': A})
    assert torch.equal(found['A'], A)
    assert torch.equal(found['B'], B)
    shared = CommutingGenerators(4, num_generators=4)
    for parameter in shared.parameters():
        nn.init.normal_(parameter)
    found = tool.learned_generators({f'neck.shared.{key}': value for key, value in shared.state_dict().items()})
    torch.testing.assert_close(found['A'], torch.stack(shared()[:2]))
    torch.testing.assert_close(found['B'], torch.stack(shared()[2:]))
    assert tool.describe_generators(found)['commutator'] < 1e-5
    assert tool.learned_generators({'backbone.generator_x': A, 'neck.weight': A}) == {}
    assert tool.describe_generators({}) == {}


def test_eigenvalues_are_those_of_a_rotation():
    rotation = torch.tensor([[1.0, -2.0], [2.0, 1.0]])
    described = tool.describe_generators({'A': rotation, 'B': torch.diag(torch.tensor([1.0, 2.0]))})
    assert sorted(described['eigenvalues']['A']) == [pytest.approx([1, -2]), pytest.approx([1, 2])]
    assert described['commutator'] > 0.1


def test_examine_compares_on_the_same_images(config, checkpoint, folder):
    report = tool.examine(config, checkpoint, *_batches(config, folder))
    assert (report['channels'], report['map'], report['stride'], report['quarter']) == (12, [8, 8], 8, 4)
    assert report['images'] == dict(fit=15, held_out=15, size=64)
    assert list(report['r2']) == list(tool.SOURCES)
    assert report['r2']['trained'] != report['r2']['random']
    ranks = {name: measured['effective_rank'] for name, measured in report['r2'].items()}
    assert ranks['shuffled'] == pytest.approx(ranks['trained'])
    assert all(1 <= rank <= 12 for rank in ranks.values())
    assert report['r2']['shuffled']['one_cell']['x'] < report['r2']['trained']['one_cell']['x']
    assert report['generators']['eigenvalues']['B'] == [[2, 0]] * 12
    assert report['generators']['commutator'] == 0
    direct = [tool.extract(tool.load_backbone(config, checkpoint), batches) for batches in _batches(config, folder)]
    assert report['r2']['trained'] == tool.measure(*direct)
    random = tool.random_backbone(config)
    tool.calibrate_batch_norm(random, _batches(config, folder)[0])
    direct = [tool.extract(random, batches) for batches in _batches(config, folder)]
    assert report['r2']['random'] == tool.measure(*direct)


def test_examine_takes_backbones_of_mmpretrain(config, folder, tmp_path):
    backbone = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=dict(type='SyncBN'))
    config.model.backbone = Config(dict(backbone=backbone)).backbone
    torch.save(MODELS.build(config.model.backbone).state_dict(), tmp_path / 'resnet.pth')
    report = tool.examine(config, tmp_path / 'resnet.pth', *_batches(config, folder, size=128))
    assert (report['backbone'], report['channels'], report['stride']) == ('ResNet', 64, 32)
    assert report['generators'] == {}
    no_maps = dict(type='VisionTransformer', arch='deit-t', img_size=64, patch_size=16)
    config.model.backbone = Config(dict(backbone=no_maps)).backbone
    torch.save(MODELS.build(config.model.backbone).state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(ValueError, match=r"VisionTransformer gives 0 feature maps.*out_type='featmap'"):
        tool.examine(config, tmp_path / 'vit.pth', *_batches(config, folder))


def test_command_names_a_broken_image(config, checkpoint, folder, tmp_path):
    for i in range(4):
        (tmp_path / f'{i}.jpg').write_bytes(b'not a image')
    with pytest.raises(SystemExit) as error:
        tool.main(
            [config.filename, str(checkpoint), '--data', str(tmp_path), '--num-workers', '1', '--device', 'cpu']
            + ['--out', str(tmp_path)]
        )
    assert '.jpg" is not a image' in str(error.value)
    assert '\n' not in str(error.value)


def test_maps_without_whole_quarters_are_refused(config, checkpoint, folder):
    with pytest.raises(ValueError, match=r'72 px give a map of 9 x 9.*--size, a multiple of 16'):
        tool.examine(config, checkpoint, *_batches(config, folder, size=72))


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('neck', [True, False])
def test_command_writes_json_and_figure(config, backbone, checkpoint, folder, tmp_path, capsys, neck):
    if not neck:
        torch.save(backbone.state_dict(), checkpoint)
    tool.main(
        [config.filename, str(checkpoint), '--data', str(folder), '--out', str(tmp_path / 'out'), '--size', '64']
        + ['--device', 'cpu', '--num-workers', '0']
    )
    report = json.loads((tmp_path / 'out' / 'heat_hypothesis.json').read_text())
    assert bool(report['generators']) == neck
    with Image.open(tmp_path / 'out' / 'heat_hypothesis.png') as figure:
        assert (figure.width > 1.5 * figure.height) == neck  # with the panel of eigenvalues
    printed = capsys.readouterr().out
    assert f'{report["r2"]["trained"]["quarter"]["x"]:.3f}' in printed
    assert ('||AB - BA||' in printed) == neck
    assert 'Caution' not in printed


def test_command_warns_of_too_few_images(config, checkpoint, folder, tmp_path, capsys):
    arguments = [config.filename, str(checkpoint), '--data', str(folder), '--out', str(tmp_path), '--size', '64']
    tool.main([*arguments, '--num-images', '4', '--num-workers', '0', '--device', 'cpu'])
    assert 'Caution: Only 64 pairs' in capsys.readouterr().out


def test_figure_survives_extreme_numbers(config, checkpoint, folder, tmp_path):
    report = tool.examine(config, checkpoint, *_batches(config, folder))
    report['r2']['random']['quarter'] = dict(x=None, y=-1e9, copy_x=-1e9, copy_y=None)
    report['r2']['random']['effective_rank'] = None
    tool.draw(report, tmp_path / 'figure.png')
    tool.print_table(report)
    with Image.open(tmp_path / 'figure.png') as figure:
        assert max(figure.size) < 3000


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['--data', 'nowhere'], 'There is no folder "nowhere"'),
        (['--data', ''], 'Name a folder of images with --data'),
        (['--num-images', '3'], '3 images from'),
        (['--size', '72'], 'no whole quarters'),
        (['--level', '5'], 'level=5'),
    ],
)
def test_command_says_what_is_wrong(config, checkpoint, folder, change, message):
    arguments = [config.filename, str(checkpoint), '--data', str(folder), '--size', '64', '--num-workers', '0']
    with pytest.raises(SystemExit, match=message):
        tool.main([*arguments, '--device', 'cpu', *change])


def test_command_names_a_config_without_a_backbone_and_a_missing_checkpoint(config, checkpoint, folder, tmp_path):
    options = ['--data', str(folder), '--size', '64', '--num-workers', '0', '--device', 'cpu']
    with pytest.raises(SystemExit, match=r'no checkpoint at .*gone\.pth'):
        tool.main([config.filename, str(tmp_path / 'gone.pth'), *options])
    (tmp_path / 'bare.py').write_text('model = dict(type="QBHeat")')
    with pytest.raises(SystemExit, match=r'bare\.py has no model\.backbone'):
        tool.main([str(tmp_path / 'bare.py'), str(checkpoint), *options])
