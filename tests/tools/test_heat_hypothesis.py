import json

import numpy as np
import pytest
import torch
from helpers.models import build_qbheat, load_script, qbheat_config, write_images
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image

from qbheat_mm.evaluation.functional.features import build_encoder, calibrate_batch_norm, extract_features
from qbheat_mm.evaluation.functional.heat_law import measure

tool = load_script('tools/analysis_tools/heat_hypothesis.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """30 images in a tree."""
    root = tmp_path_factory.mktemp('images')
    for i, suffix in enumerate(('.png', '.jpg', '.webp')):
        write_images(root / f'group{i}', 10, size=96, seed=i, suffix=suffix)
    return root


@pytest.fixture
def config(tmp_path):
    Config(dict(model=qbheat_config())).dump(tmp_path / 'config.py')
    return Config.fromfile(tmp_path / 'config.py')


@pytest.fixture
def checkpoint(tmp_path):
    generators = {'neck.generator_x': torch.diag(torch.arange(20.0)), 'neck.generator_y': 2 * torch.eye(20)}
    torch.save(dict(state_dict=build_qbheat().state_dict() | generators), tmp_path / 'model.pth')
    return tmp_path / 'model.pth'


@pytest.fixture
def run(config, checkpoint, folder, tmp_path):
    """Run the command with further arguments, in place of those of the same name."""

    def main(*arguments, config=config.filename, checkpoint=checkpoint):
        options = ['--data', str(folder), '--out', str(tmp_path / 'out'), '--size', '128', '--num-workers', '0']
        tool.main([str(config), str(checkpoint), *options, '--device', 'cpu', *arguments])
        return json.loads((tmp_path / 'out' / 'heat_hypothesis.json').read_text())

    return main


def examine(config, checkpoint, folder, size=128):
    return tool.examine(config, checkpoint, *tool.build_loaders(folder, size, 30, batch_size=8), size)


def test_halves_are_disjoint_and_follow_from_the_seed(folder):
    def halves(count, seed=0):
        return [loader.dataset for loader in tool.build_loaders(folder, 64, count, seed)]

    fit, held_out = halves(21, seed=3)
    assert (len(fit), len(held_out)) == (10, 11)
    assert not set(fit) & set(held_out)
    assert halves(21, seed=3)[0] == fit
    assert halves(21, seed=4)[0] != fit
    fit, held_out = halves(1000)
    assert len({*fit, *held_out}) == 30


@pytest.mark.parametrize('to_rgb', [True, False])
def test_images_are_normalized_as_in_the_config(config, tmp_path, to_rgb):
    red = np.zeros((40, 80, 3), dtype=np.uint8)
    red[..., 0] = 200
    for i in range(4):
        Image.fromarray(red).save(tmp_path / f'{i}.png')
    settings = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])
    color = [200, 0, 0] if to_rgb else [0, 0, 200]
    expected = (torch.tensor(color) - torch.tensor([120, 110, 100])) / torch.tensor([60, 50, 40])
    loader, _ = tool.build_loaders(tmp_path, 32, 4)
    for key in ('to_rgb', 'bgr_to_rgb'):
        config.model.data_preprocessor = settings | {key: to_rgb}
        (data,) = loader
        batch = build_encoder(config).data_preprocessor(data, False)['inputs']
        assert batch.shape == (2, 3, 32, 32)
        torch.testing.assert_close(batch.mean((0, 2, 3)), expected)


def test_checkpoint_and_controls_are_compared_on_the_same_images(config, checkpoint, folder):
    report = examine(config, checkpoint, folder)
    assert (report['channels'], report['map'], report['stride'], report['quarter']) == (20, [8, 8], 16, 4)
    assert report['images'] == dict(fit=15, held_out=15, size=128)
    assert list(report['r2']) == list(tool.SOURCES)
    assert report['r2']['trained'] != report['r2']['random']
    ranks = {name: measured['effective_rank'] for name, measured in report['r2'].items()}
    assert ranks['shuffled'] == pytest.approx(ranks['trained'])
    assert all(1 <= rank <= 20 for rank in ranks.values())
    assert report['r2']['shuffled']['one_cell']['x'] < report['r2']['trained']['one_cell']['x']
    assert report['generators']['eigenvalues']['B'] == [[2, 0]] * 20
    assert report['generators']['commutator'] == 0
    loaders = tool.build_loaders(folder, 128, 30, batch_size=8)
    trained, random = build_encoder(config, checkpoint), build_encoder(config)
    calibrate_batch_norm(random, loaders[0], 16)
    for name, encoder in (('trained', trained), ('random', random)):
        halves = [extract_features(encoder.backbone, encoder.data_preprocessor, loader) for loader in loaders]
        assert report['r2'][name] == measure(*([features for features, _ in half] for half in halves))


def test_backbones_of_mmpretrain(config, folder, tmp_path):
    config.model.backbone = dict(
        type='ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=dict(type='SyncBN')
    )
    torch.save(MODELS.build(config.model.backbone).state_dict(), tmp_path / 'resnet.pth')
    report = examine(config, tmp_path / 'resnet.pth', folder)
    assert (report['backbone'], report['channels'], report['stride']) == ('ResNet', 64, 32)
    assert report['generators'] == {}
    config.model.backbone = dict(type='VisionTransformer', arch='deit-t', img_size=128, patch_size=16)
    torch.save(MODELS.build(config.model.backbone).state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(ValueError, match=r"VisionTransformer gives 0 feature maps.*out_type='featmap'"):
        examine(config, tmp_path / 'vit.pth', folder)


@pytest.mark.parametrize('neck', [True, False])
def test_command_writes_json_and_figure(run, checkpoint, tmp_path, capsys, neck):
    if not neck:
        torch.save(build_qbheat().backbone.state_dict(), checkpoint)
    report = run()
    assert bool(report['generators']) == neck
    with Image.open(tmp_path / 'out' / 'heat_hypothesis.png') as figure:
        assert (figure.width > 1.5 * figure.height) == neck  # with the panel of eigenvalues
    printed = capsys.readouterr().out
    assert f'{report["r2"]["trained"]["quarter"]["x"]:.3f}' in printed
    assert ('||AB - BA||' in printed) == neck
    assert 'Caution' not in printed


def test_few_images_and_extreme_numbers(run, tmp_path, capsys):
    report = run('--num-images', '4')
    assert 'Caution: Only 64 pairs' in capsys.readouterr().out
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
        (['--size', '144'], r'144 px give a map of 9 x 9.*no whole quarters.*--size, a multiple of 32'),
        (['--level', '5'], 'level=5'),
    ],
)
def test_invalid_options_are_refused(run, change, message):
    with pytest.raises(SystemExit, match=message):
        run(*change)


def test_invalid_files_are_named(run, tmp_path):
    with pytest.raises(SystemExit, match=r'no checkpoint at .*gone\.pth'):
        run(checkpoint=tmp_path / 'gone.pth')
    (tmp_path / 'bare.py').write_text('model = dict(type="QBHeat")')
    with pytest.raises(SystemExit, match=r'bare\.py has no model\.backbone'):
        run(config=tmp_path / 'bare.py')
    (tmp_path / 'broken').mkdir()
    with pytest.raises(SystemExit, match='There is no image in'):
        run('--data', str(tmp_path / 'broken'))
    for i in range(4):
        (tmp_path / 'broken' / f'{i}.jpg').write_bytes(b'not an image')
    with pytest.raises(SystemExit, match=r'[0-3]\.jpg" cannot be read') as error:
        run('--data', str(tmp_path / 'broken'), '--num-workers', '1')
    assert '\n' not in str(error.value)
