"""Only tensors and plain values enter or leave checkpoint files; no code in them is executed."""

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import ROOT, qbheat_config
from helpers.runs import PLAIN, image_loader, run, run_config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmpretrain.registry import MODELS

from qbheat_mm.apis import QBHeatInferencer
from qbheat_mm.checkpoint import CheckpointError, read_checkpoint
from qbheat_mm.engine.feature_cache import build_frozen
from qbheat_mm.engine.hooks import PlainCheckpointHook
from qbheat_mm.engine.launch import prepare_hooks


class Canary:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.fixture
def marker(tmp_path):
    """The file that appears if anything of a checkpoint is executed."""
    return tmp_path / 'executed'


TWO_EPOCHS = dict(by_epoch=True, max_epochs=2)
RAW = dict(log_scalars={'train/loss': HistoryBuffer([0.25], [1])})  # as stock runs of mmengine write it


def config_text(marker: Path) -> str:
    # an import statement would make a lazy config of it, in which nothing is called
    return f'code = __import__("os").system("touch {marker}")\ngpu_ids = []\n'


@pytest.fixture
def config(images, tmp_path):
    """Makes the config of a run in ``tmp_path / 'run'``."""
    return partial(run_config, tmp_path / 'run', images)


@pytest.fixture
def runner(config):
    return lambda **kwargs: Runner.from_cfg(config(**kwargs))


@pytest.fixture(scope='module')
def finished(images, tmp_path_factory) -> Path:
    """The checkpoint of a finished run."""
    init_default_scope('mmpretrain')
    folder = tmp_path_factory.mktemp('finished')
    Runner.from_cfg(run_config(folder, images)).train()
    return folder / 'epoch_1.pth'


@pytest.fixture
def tampered(finished, tmp_path):
    """Writes the finished run's checkpoint with other entries put in, at any depth."""

    def merge(target: dict, source: dict) -> dict:
        return target | {
            k: merge(target[k], v) if isinstance(v, dict) and k in target else v for k, v in source.items()
        }

    def write(**extra) -> Path:
        path = tmp_path / 'run' / 'tampered.pth'
        path.parent.mkdir(exist_ok=True)
        torch.save(merge(torch.load(finished, weights_only=True), extra), path)
        return path

    return write


def ways(folder: Path, path: Path):
    """Every way into a run: its name, and the fields of the config that take it."""
    resnet = dict(type='ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'))
    listed = dict(resnet, init_cfg=[dict(type='Kaiming', layer='Conv2d'), resnet['init_cfg']])
    mobile_former = qbheat_config()['backbone'] | dict(init_cfg=resnet['init_cfg'])
    for name, options in dict(
        load_from=dict(load_from=str(path)),
        resume=dict(load_from=str(path), resume=True),
        auto_resume=dict(resume=True),
        mobile_former=dict(model=dict(qbheat_config(), backbone=mobile_former)),
        resnet=dict(model=dict(type='ImageClassifier', backbone=resnet)),
        resnet_list=dict(model=dict(type='ImageClassifier', backbone=listed)),
        whole_model=dict(model=dict(qbheat_config(), init_cfg=dict(type='Pretrained', checkpoint=str(path)))),
    ).items():
        if name == 'auto_resume':
            (folder / 'last_checkpoint').write_text(str(path))
        yield name, options


def test_no_way_into_a_run_executes_a_pickle(runner, tampered, tmp_path, marker):
    path = tampered(extra=Canary(marker))
    for name, options in ways(tmp_path / 'run', path):
        with pytest.raises(CheckpointError, match=r'tampered\.pth" is not a file of plain weights .*nothing in it was'):
            runner(**options).train()
        assert not marker.exists(), name
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is what it is meant to be


def test_the_environment_that_turns_torch_s_own_guard_off_does_not_turn_ours_off(runner, tampered, marker, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # a common way round mmengine's own trouble
    with pytest.raises(CheckpointError):
        runner(load_from=str(tampered(extra=Canary(marker)))).train()
    assert not marker.exists()


@pytest.mark.parametrize('key', ['config', 'cfg'])
def test_config_text_in_a_checkpoint_is_not_executed(config, runner, tampered, marker, key):
    text = config_text(marker)
    path = tampered(meta={key: text}, message_hub=dict(runtime_info=dict(cfg=text)))
    read_checkpoint(path)  # which weights_only lets pass
    run = runner(load_from=str(path), resume=True, train_cfg=TWO_EPOCHS)
    run.train()
    assert run.iter == 4
    runner(load_from=str(path)).train()
    QBHeatInferencer(config(), str(path), device='cpu')
    assert not marker.exists()


def test_config_text_is_executed_with_trust(runner, tampered, marker):
    path = tampered(meta=dict(config=config_text(marker)))
    hooks = dict(plain_checkpoint=dict(type='PlainCheckpointHook', trust=True))
    runner(load_from=str(path), resume=True, default_hooks=hooks).train()
    assert marker.exists()


def check_that_it_resumes(run: Runner) -> None:
    run.train()
    assert run.iter == 4
    assert run.message_hub.get_scalar('train/loss').data[0][0] == 0.25


@pytest.mark.parametrize('hooks', [PLAIN, {}])
def test_a_raw_file_of_a_stock_run_resumes(runner, tampered, hooks):
    """mmengine 0.10.7 cannot read it with torch >= 2.6, and later ones allow getattr."""
    path = tampered(message_hub=RAW)
    check_that_it_resumes(runner(default_hooks=hooks, load_from=str(path), resume=True, train_cfg=TWO_EPOCHS))


class Attribute:
    """Unpickled, it is an attribute of something else than a log curve."""

    def __init__(self, owner, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    ('owner', 'name'), [(HistoryBuffer, '__init__'), (HistoryBuffer([1.0], [1]), 'mean'), (torch, 'load')]
)
def test_log_curves_do_not_let_other_attributes_in(tmp_path, owner, name):
    if owner is torch:
        owner = torch.Tensor  # which weights_only knows
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), extra=Attribute(owner, name)), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='nothing in it was executed'):
        read_checkpoint(tmp_path / 'a.pth')


def test_our_tools_guard_configs_of_others(config, tampered, tmp_path, marker):
    """A config without our runtime: the hooks are added, and what the run writes can be resumed from."""
    cfg = config()
    cfg.pop('default_hooks')
    prepare_hooks(cfg, trust=False)
    Runner.from_cfg(cfg).train()
    read_checkpoint(tmp_path / 'run' / 'epoch_1.pth')
    path = tampered(extra=Canary(marker))
    cfg = config(load_from=str(path), runner_type='FlexibleRunner', default_hooks=None)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='a.pth')
    trusting = cfg.copy()
    prepare_hooks(trusting, trust=True)
    assert trusting.load_from == f'trusted://{path}'
    assert trusting.model.backbone.init_cfg.checkpoint == 'trusted://a.pth'
    prepare_hooks(cfg, trust=False)
    with pytest.raises(CheckpointError):
        CheckpointLoader.load_checkpoint(cfg.load_from)
    assert not marker.exists()


def test_cached_features_come_from_a_guarded_file(tmp_path, marker):
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), extra=Canary(marker)), tmp_path / 'hostile.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'hostile.pth'), prefix='backbone.')
    backbone = dict(type='ResNet', depth=18, frozen_stages=4, norm_cfg=dict(type='BN', requires_grad=False))
    with pytest.raises(CheckpointError):
        build_frozen(dict(backbone, init_cfg=init_cfg))
    assert not marker.exists()


def test_weights_alone_cannot_be_resumed_from(runner, finished, tmp_path):
    content = torch.load(finished, weights_only=True)
    torch.save(dict(state_dict=content['state_dict'], meta=dict(iter=2)), tmp_path / 'weights.pth')
    with pytest.raises(
        CheckpointError, match=r'weights\.pth" cannot be resumed from, it lacks optimizer, message_hub, meta\.epoch'
    ):
        runner(load_from=str(tmp_path / 'weights.pth'), resume=True).train()
    runner(load_from=str(tmp_path / 'weights.pth')).train()


def test_a_resumed_checkpoint_cannot_have_files_elsewhere_deleted(runner, tampered, images, tmp_path):
    precious = tmp_path / 'precious.txt'
    precious.write_text('mine')
    names = dict(best_ckpt=str(precious), best_score=9.0, keep_ckpt_ids=['../../precious', 1])
    path = tampered(message_hub=dict(runtime_info=names, resumed_keys={name: True for name in names}))
    checkpoint = dict(type='CheckpointHook', save_best='reconstruction/masked_loss', rule='less', max_keep_ckpts=1)
    run = runner(
        load_from=str(path),
        resume=True,
        train_cfg=TWO_EPOCHS,
        val_dataloader=image_loader(images, test_mode=True),
        val_cfg=dict(),
        val_evaluator=dict(type='ReconstructionLoss'),
        default_hooks=PLAIN | dict(checkpoint=checkpoint),
    )
    run.train()
    assert Path(run.message_hub.get_info('best_ckpt')).name.startswith('best_')
    assert precious.read_text() == 'mine'


def test_safetensors_load_through_the_runner_and_any_model(tmp_path):
    from safetensors.torch import save_file

    model = MODELS.build(dict(type='ResNet', depth=18))
    weights = {f'backbone.{k}': v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, tmp_path / 'resnet.safetensors')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.safetensors'), prefix='backbone.')
    other = MODELS.build(dict(type='ResNet', depth=18, init_cfg=init_cfg))
    other.init_weights()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('s3://bucket/a.pth', 's3://bucket/a.pth" cannot be read .*: download the file'),
        ('cluster:s3://bucket/a.pth', 'cluster:s3://bucket/a.pth" cannot be read .*: download the file'),
        ('torchvision://resnet51', 'no model "resnet51" behind torchvision://'),
        ('open-mmlab://nothing', 'no model "nothing" behind open-mmlab://'),
        ('http://127.0.0.1:9/a.pth', 'http://127.0.0.1:9/a.pth" cannot be downloaded'),
        ('file:///etc/hostname', 'cannot be read'),
        ('.', 'is a folder'),
    ],
)
def test_addresses_that_lead_nowhere_are_named(address, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        CheckpointLoader.load_checkpoint(address)


def test_names_of_the_zoos_are_found_where_mmengine_keeps_them(tmp_path, monkeypatch):
    """A file in torch's hub folder, as mmengine or torch downloaded it, is read and not downloaded again."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    name = mmengine_checkpoint.get_torchvision_models()['resnet50'].rpartition('/')[2]
    (tmp_path / 'checkpoints').mkdir()
    torch.save(dict(weight=torch.ones(2)), tmp_path / 'checkpoints' / name)
    assert CheckpointLoader.load_checkpoint('torchvision://resnet50')['weight'].tolist() == [1, 1]


def test_checkpoints_are_plain_and_resume(runner, finished):
    content = read_checkpoint(finished)  # weights_only=True
    losses = content['message_hub']['log_scalars']['train/loss']['log_history']
    assert len(losses) == 2
    assert all(type(loss) is float for loss in losses)

    run = runner(resume=True, load_from=str(finished), train_cfg=TWO_EPOCHS)
    run.train()
    assert run.iter == 4
    assert run.message_hub.get_scalar('train/loss').data[0][:2].tolist() == losses


def loading_run(model: torch.nn.Module) -> SimpleNamespace:
    return SimpleNamespace(_resume=False, _load_from='a.pth', model=model)


def test_numpy_values_become_plain_ones_and_others_stay():
    checkpoint = dict(
        state_dict=dict(weight=torch.ones(1, 1)),
        optimizer=dict(state=torch.ones(1)),
        meta=dict(score=np.float64(0.5), classes=('cat', 'dog'), mean=np.arange(2)),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])), runtime_info=dict(), resumed_keys=dict()),
    )
    hook = PlainCheckpointHook()
    hook.before_save_checkpoint(None, checkpoint)
    assert type(checkpoint['meta']['score']) is float
    assert checkpoint['meta'] == dict(score=0.5, classes=('cat', 'dog'), mean=[0, 1])
    hook.after_load_checkpoint(loading_run(torch.nn.Linear(1, 1, bias=False)), checkpoint)
    assert checkpoint['message_hub']['log_scalars']['loss'].mean() == 1.0


def test_checkpoints_of_stock_runs_pass():
    buffer = HistoryBuffer([1.0], [1])
    layer = torch.nn.Linear(1, 1)
    checkpoint = dict(state_dict=layer.state_dict(), message_hub=dict(log_scalars=dict(loss=buffer)))
    PlainCheckpointHook().after_load_checkpoint(loading_run(layer), checkpoint)
    assert checkpoint['message_hub']['log_scalars']['loss'] is buffer
    PlainCheckpointHook().after_load_checkpoint(loading_run(layer), layer.state_dict())


@pytest.mark.slow
def test_a_config_of_ours_is_guarded_under_a_package_s_own_tool(images, tmp_path, marker):
    import mmpretrain

    tool = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
    if not tool.is_file():
        pytest.skip('mmpretrain was installed without its tools')
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), extra=Canary(marker)), tmp_path / 'hostile.pth')
    config = ROOT / 'configs/qbheat/qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py'
    options = ('--work-dir', 'run', '--resume', 'hostile.pth', '--cfg-options', 'train_dataloader.batch_size=4')
    for program in (tool, ROOT / 'tools' / 'train.py'):
        output = run(sys.executable, program, config, *options, cwd=tmp_path, fails=True, DATA_ROOT=str(images))
        assert 'is not a file of plain weights' in output.strip().splitlines()[-1]
        assert not marker.exists()
