"""A backbone as a plain module."""

import copy
import subprocess
import sys

import mmpretrain
import pytest
import torch
from helpers.models import ROOT, TINY_ARCH, frozen_classifier_config, qbheat_config
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch.utils.data import DataLoader

from qbheat_mm.apis import load_backbone
from qbheat_mm.checkpoint import CheckpointError

(PATH,) = (ROOT / 'weights').glob('*.pth')
NAME = PATH.stem.rpartition('-')[0]


@pytest.fixture
def config():
    return Config(dict(model=qbheat_config()))


@pytest.fixture
def trained(config):
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


@pytest.fixture
def checkpoint(trained, tmp_path):
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'whole.pth')
    return tmp_path / 'whole.pth'


@pytest.mark.parametrize('named', [NAME, PATH, str(PATH)])
def test_the_name_and_the_file_of_the_repository_give_mmpretrains_features(named):
    backbone = load_backbone(named)
    assert not any(module.training for module in backbone.modules())
    assert backbone.channels == [160]
    assert backbone.strides == [16]
    model = mmpretrain.get_model(NAME, pretrained=True).eval()
    image = torch.randint(0, 256, (1, 3, 96, 64), dtype=torch.uint8)
    inputs = model.data_preprocessor(dict(inputs=image.flip(1)))['inputs']  # BGR, as OpenMMLab loads
    normalized = (image / 255 - torch.tensor(backbone.mean)[:, None, None]) / torch.tensor(backbone.std)[:, None, None]
    with torch.inference_mode():
        (features,) = backbone(normalized)
        (expected,) = model.extract_feat(inputs, stage='backbone')
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-4)


def test_a_model_trained_on_bgr_gets_bgr(tmp_path):
    config = Config(dict(model=frozen_classifier_config()))
    config.model.data_preprocessor = dict(mean=[1, 2, 3], std=[4, 5, 6])
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    torch.save(model.state_dict(), tmp_path / 'bgr.pth')
    backbone = load_backbone(config, tmp_path / 'bgr.pth')
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    normalized = (image / 255 - torch.tensor(backbone.mean)[:, None, None]) / torch.tensor(backbone.std)[:, None, None]
    with torch.no_grad():
        expected = model.backbone(model.data_preprocessor(dict(inputs=image.flip(1)))['inputs'])
        for out, expected_out in zip(backbone(normalized), expected, strict=True):
            torch.testing.assert_close(out, expected_out, atol=1e-4, rtol=1e-4)


def test_stages_and_tokens_are_chosen(config, checkpoint, trained):
    backbone = load_backbone(config, checkpoint, out_indices=(0, 1, 3), out_tokens=True)
    assert (backbone.channels, backbone.strides) == ([8, 12, 20, 16], [4, 8, 16, None])
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        outs = backbone(image)
        (expected,) = trained.backbone(image)
    assert [tuple(out.shape) for out in outs] == [(2, 8, 16, 24), (2, 12, 8, 12), (2, 20, 4, 6), (2, 2, 16)]
    torch.testing.assert_close(outs[2], expected)


def test_a_config_file_and_a_file_of_the_backbone_alone(config, trained, tmp_path):
    config.dump(tmp_path / 'config.py')
    torch.save(trained.backbone.state_dict(), tmp_path / 'backbone.pth')
    backbone = load_backbone(str(tmp_path / 'config.py'), tmp_path / 'backbone.pth')
    expected = trained.backbone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in backbone.backbone.state_dict().items())


def test_what_a_config_freezes_is_trained_again_and_its_own_weights_load(tmp_path):
    model = frozen_classifier_config()
    torch.manual_seed(0)
    torch.save(MODELS.build(model).state_dict(), tmp_path / 'model.pth')
    model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'), prefix='backbone.')
    backbone = load_backbone(Config(dict(model=model)), out_tokens=True).train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())


def test_a_backbone_of_a_detector():
    config = ROOT / 'configs/detection/conditional-detr_mobile-former-285m-frozen_1xb16-50e_coco-people320-person.py'
    backbone = load_backbone(config, PATH, out_indices=(1, 2))
    assert backbone.strides == [8, 16]


def test_broken_input_is_named(config, checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no config at ".*nowhere\.py"'):
        load_backbone(tmp_path / 'nowhere.py', checkpoint)
    with pytest.raises(ValueError, match='"nowhere" is neither a file nor a name'):
        load_backbone('nowhere')
    with pytest.raises(ValueError, match=r'whole\.pth" is not a file of weights/: give its config first'):
        load_backbone(checkpoint)
    with pytest.raises(CheckpointError, match='names no weights: give the checkpoint'):
        load_backbone(config)
    with pytest.raises(CheckpointError, match='no checkpoint at'):
        load_backbone(config, tmp_path / 'nowhere.pth')
    with pytest.raises(ValueError, match=r'has no model\.backbone'):
        load_backbone(Config(dict(model=dict(type='SGD'))), checkpoint)
    torch.save(dict(state_dict=dict(x=Config())), tmp_path / 'pickled.pth')
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        load_backbone(config, tmp_path / 'pickled.pth')


def test_every_weight_must_fit(config, trained, tmp_path):
    def without(key):
        state_dict = trained.state_dict()
        del state_dict[key]
        return state_dict

    torch.save(without('backbone.tokens'), tmp_path / 'missing.pth')
    with pytest.raises(CheckpointError, match='missing: tokens'):
        load_backbone(config, tmp_path / 'missing.pth')
    other = copy.deepcopy(config)
    other.model.backbone.arch = dict(TINY_ARCH, num_tokens=3)
    torch.save(trained.state_dict(), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'of another shape: tokens \(2, 16\)'):
        load_backbone(other, tmp_path / 'other.pth')


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_it_works_in_a_worker(config, checkpoint, context):
    backbone = load_backbone(config, checkpoint).requires_grad_(False)
    images = [torch.randn(2, 3, 64, 64), torch.randn(1, 3, 96, 64)]
    loader = DataLoader(images, None, num_workers=1, collate_fn=backbone, multiprocessing_context=context)
    for (features,), batch in zip(loader, images, strict=True):
        torch.testing.assert_close(features, backbone(batch)[0], atol=1e-5, rtol=1e-4)


def test_two_lines_in_a_fresh_process_print_no_warning():
    code = f'from qbheat_mm.apis import load_backbone; print(load_backbone({NAME!r}).channels)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[160]'
    assert 'Warning' not in done.stderr
