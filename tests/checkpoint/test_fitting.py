"""Weights that do not fit stop a run, whatever it does with them."""

import itertools

import pytest
import torch
from helpers.models import TINY_ARCH, qbheat_config
from helpers.probes import probe
from helpers.runs import PLAIN, log_of, run_config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from qbheat_mm.checkpoint import CheckpointError
from qbheat_mm.engine.launch import prepare_hooks

FROZEN = dict(type='ResNet', depth=18, frozen_stages=4, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True)
SHALLOW = FROZEN | dict(num_stages=3, out_indices=(2,), strides=(1, 2, 2), dilations=(1, 1, 1), frozen_stages=3)
PARTLY = dict(plain_checkpoint=dict(type='PlainCheckpointHook', strict=False))


def saved(path, model: dict, prefix: str = '', **changes) -> str:
    """The path of a file with the weights of a model, with ``changes`` made to them."""
    torch.manual_seed(1)
    weights = {prefix + key: value for key, value in MODELS.build(model).state_dict().items()}
    for key, change in changes.items():
        weights[prefix + key.replace('__', '.')] = change(weights[prefix + key.replace('__', '.')])
    torch.save(dict(state_dict=weights), path)
    return str(path)


def initialized(checkpoint: str, **kwargs):
    prefix = kwargs.pop('prefix', None)
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint, **(dict(prefix=prefix) if prefix else {}))
    backbone = MODELS.build(FROZEN | dict(init_cfg=init_cfg) | kwargs)
    backbone.init_weights()
    return backbone


def test_a_frozen_backbone_loads_all_of_a_file_that_fits(tmp_path):
    path = saved(tmp_path / 'a.pth', dict(type='ImageClassifier', backbone=FROZEN))
    own = initialized(path, prefix='backbone.').state_dict()
    weights = torch.load(path)['state_dict']
    assert all(torch.equal(value, weights['backbone.' + key]) for key, value in own.items())


def test_the_head_of_a_classifier_is_left_out(tmp_path):
    content = MODELS.build(FROZEN).state_dict() | {'fc.weight': torch.ones(1), 'fc.bias': torch.ones(1)}
    torch.save(content, tmp_path / 'torchvision.pth')
    assert torch.equal(initialized(str(tmp_path / 'torchvision.pth')).conv1.weight, content['conv1.weight'])


FILES = dict(  # what a frozen ResNet-18 is given, and what the message says
    prefixed=(dict(type='ImageClassifier', backbone=FROZEN), 'under the prefix "backbone.": set init_cfg.prefix to it'),
    prefixed_shallower=(dict(type='ImageClassifier', backbone=SHALLOW), 'prefix'),
    shallower=(SHALLOW, r'missing: layer4\.0\.conv1'),
    deeper=(FROZEN | dict(depth=34), r'unexpected: layer1\.2\.conv1\.weight'),
    wider=(FROZEN | dict(base_channels=32, stem_channels=32), 'of another shape: '),
    mobile_former=(dict(type='MobileFormer', arch=TINY_ARCH), 'missing: conv1'),
)


@pytest.mark.parametrize('name', FILES)
def test_a_frozen_backbone_is_never_random(tmp_path, name):
    model, message = FILES[name]
    with pytest.raises(CheckpointError, match=message):
        initialized(saved(tmp_path / 'a.pth', model))


def test_trained_parts_may_be_missing_but_frozen_ones_not(tmp_path):
    path = saved(tmp_path / 'a.pth', SHALLOW)
    initialized(path, frozen_stages=3, norm_cfg=dict(type='BN'))
    with pytest.raises(CheckpointError, match=r'missing: layer4\.0\.conv1\.weight'):
        initialized(path)


CHANGES = dict(
    nan=(lambda value: value * torch.nan, r'of other numbers: conv1\.weight \(NaN\)'),
    infinite=(lambda value: value / 0, r'of other numbers: conv1\.weight \((infinite|NaN)\)'),
    int8=(lambda value: value.to(torch.int8), r'of other numbers: conv1\.weight int8 where float32 belongs'),
    bool=(lambda value: value > 0, r'of other numbers: conv1\.weight bool where float32 belongs'),
)


@pytest.mark.parametrize('frozen', [4, -1])
@pytest.mark.parametrize('name', CHANGES)
def test_weights_that_are_no_weights_are_refused(tmp_path, name, frozen):
    change, message = CHANGES[name]
    path = saved(tmp_path / 'a.pth', FROZEN, conv1__weight=change)
    with pytest.raises(CheckpointError, match=message):
        initialized(path, frozen_stages=frozen)


def test_half_precision_loads(tmp_path):
    path = saved(tmp_path / 'a.pth', FROZEN, conv1__weight=lambda value: value.half())
    assert initialized(path).conv1.weight.dtype == torch.float32


@pytest.mark.parametrize('fits', [True, False])
def test_a_detector_s_frozen_backbone_that_loads_in_its_own_way(tmp_path, images, fits):
    swin = dict(type='mmdet.SwinTransformer', embed_dims=12, depths=(1, 1), num_heads=(1, 1), strides=(4, 2))
    swin = swin | dict(out_indices=(1,), frozen_stages=2)
    path = saved(tmp_path / 'a.pth', dict(swin, window_size=7), prefix='backbone.')
    weights = torch.load(path)['state_dict']
    if not fits:
        weights = {key: value for key, value in weights.items() if 'stages.1' not in key}
    torch.save(dict(state_dict=weights), path)
    swin['init_cfg'] = dict(type='Pretrained', checkpoint=path)
    cfg = run_config(tmp_path / 'run', images, model=dict(type='FrozenThenLinear', backbone=swin))
    if fits:
        Runner.from_cfg(cfg).train()
    else:
        with pytest.raises(CheckpointError, match=r'Frozen, but not loaded: backbone\.stages\.1'):
            Runner.from_cfg(cfg).train()


@MODELS.register_module()
class FrozenThenLinear(torch.nn.Module):
    """A detector's share of a run: a backbone and something that is trained."""

    def __init__(self, backbone: dict, data_preprocessor: dict | None = None) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def init_weights(self) -> None:
        self.backbone.init_weights()

    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(self.weight.sum())
        return dict(loss=self.weight.sum())


def models() -> dict[str, dict]:
    """Tiny models; each has another set of keys or shapes."""
    return dict(
        qbheat=qbheat_config(),
        wide=qbheat_config(decoder=dict(embed_dims=32)),
        deep=qbheat_config(decoder=dict(depth=2)),
        classifier=dict(
            type='ImageClassifier',
            backbone=dict(type='MobileFormer', arch=TINY_ARCH),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=20),
        ),
    )


@pytest.mark.parametrize(('file', 'model'), itertools.product(models(), models()))
def test_a_run_starts_with_weights_that_all_fit(tmp_path, images, file, model):
    path = saved(tmp_path / 'a.pth', models()[file])
    cfg = run_config(tmp_path / 'run', images, model=models()[model], load_from=path)
    hook = Runner.from_cfg(cfg)
    if file == model:
        hook.load_or_resume()
    else:
        with pytest.raises(CheckpointError, match=r'a\.pth" does not fit .*(missing|unexpected|of another shape): '):
            hook.load_or_resume()
        cfg = run_config(tmp_path / 'partly', images, model=models()[model], load_from=path, default_hooks=PARTLY)
        Runner.from_cfg(cfg).load_or_resume()
        log = log_of(tmp_path / 'partly')
        assert 'Not loaded are those' in log


def test_weights_of_which_nothing_fits_are_refused_also_in_part(tmp_path, images):
    path = saved(tmp_path / 'a.pth', FROZEN)
    cfg = run_config(tmp_path / 'run', images, load_from=path, default_hooks=PARTLY)
    with pytest.raises(CheckpointError, match=r'Nothing in ".*a\.pth" fits QBHeat'):
        Runner.from_cfg(cfg).load_or_resume()


def test_another_tool_s_file_of_a_model_is_loaded(tmp_path, images):
    torch.save(dict(model=MODELS.build(qbheat_config()).state_dict()), tmp_path / 'a.pth')
    runner = Runner.from_cfg(run_config(tmp_path / 'run', images, load_from=str(tmp_path / 'a.pth')))
    runner.load_or_resume()
    weights = torch.load(tmp_path / 'a.pth')['model']
    assert all(torch.equal(value, weights[key]) for key, value in runner.model.state_dict().items())


def test_a_probe_is_not_tested_with_a_pre_training_s_weights(probe_data):
    cfg = probe(probe_data, 'linear')
    cfg.model.backbone.init_cfg = None
    cfg.load_from = str(probe_data / 'qbheat.pth')
    prepare_hooks(cfg, trust=False)
    with pytest.raises(
        CheckpointError, match=r'does not fit ImageClassifier\. missing: .*head\.fc\.weight.*--allow-partial'
    ):
        Runner.from_cfg(cfg).test()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(model=qbheat_config(decoder=dict(depth=2))), r'does not fit QBHeat\. missing: decoder\.'),
        (
            dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))),
            r'another optimizer, with the settings betas, eps, .* where SGD has .*momentum.*load_from=FILE',
        ),
        (
            dict(
                optim_wrapper=dict(
                    optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1), paramwise_cfg=dict(norm_decay_mult=0.0)
                )
            ),
            r'another optimizer, with groups of \d+ parameters, where this run has groups of 1, 1',
        ),
    ],
)
def test_resuming_into_another_model_or_optimizer_names_what_differs(tmp_path, images, change, message):
    Runner.from_cfg(run_config(tmp_path / 'one', images, default_hooks=PLAIN)).train()
    path = str(tmp_path / 'one' / 'epoch_1.pth')
    other = run_config(tmp_path / 'two', images, load_from=path, resume=True, **change)
    with pytest.raises(CheckpointError, match=message):
        Runner.from_cfg(other).train()


def test_a_run_with_groups_of_parameters_resumes(tmp_path, images):
    """mmengine counts the settings of the base optimizer as a group more, which its checkpoints do not have."""
    optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(norm_decay_mult=0.0)
    )
    Runner.from_cfg(run_config(tmp_path, images, optim_wrapper=optim_wrapper)).train()
    cfg = run_config(tmp_path, images, optim_wrapper=optim_wrapper, resume=True)
    cfg.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.epoch == 2
    assert len(runner.optim_wrapper.optimizer.param_groups) > 1
