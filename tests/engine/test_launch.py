import pytest
import torch
from helpers.models import ROOT
from helpers.runs import run_config
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner

from qbheat_mm.engine.launch import (
    CPUDistributedDataParallel,
    adapt_to_device,
    check_base_batch,
    follow_epochs,
    prepare_hooks,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
@pytest.mark.parametrize('find_unused', [True, False])
def test_several_processes_on_a_cpu_name_no_device(launcher, find_unused):
    cfg = Config(dict(launcher=launcher, find_unused_parameters=find_unused))
    adapt_to_device(cfg)
    assert ('model_wrapper_cfg' in cfg) == (launcher == 'pytorch')
    if launcher == 'pytorch':
        assert cfg.model_wrapper_cfg.type == 'CPUDistributedDataParallel'
        assert cfg.model_wrapper_cfg.find_unused_parameters is find_unused


def test_a_wrapper_that_is_named_is_left_alone():
    wrapper = dict(type='MMFullyShardedDataParallel')
    cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=wrapper))
    adapt_to_device(cfg)
    assert cfg.model_wrapper_cfg == wrapper


@pytest.mark.parametrize('tool', ['ours', 'stock'])
def test_every_hook_of_the_runtime_can_be_switched_off(images, tmp_path, tool):
    runtime = Config.fromfile(ROOT / 'configs/_base_/qbheat_runtime.py').default_hooks
    cfg = run_config(tmp_path, images, default_hooks=dict(runtime, **dict.fromkeys(runtime)))
    if tool == 'ours':
        prepare_hooks(cfg, trust=False)
    runner = Runner.from_cfg(cfg)
    runner.train()
    ours = [type(hook).__name__ for hook in runner.hooks if type(hook).__module__.startswith('qbheat_mm')]
    assert ours == (['PlainCheckpointHook'] if tool == 'ours' else [])  # checkpoints stay safe
    assert not list(tmp_path.glob('*.pth'))


def test_sync_bn_becomes_bn_in_several_processes_on_a_cpu(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        MMDistributedDataParallel, '__init__', lambda self, module, **kwargs: seen.update(module=module, **kwargs)
    )
    CPUDistributedDataParallel(torch.nn.Sequential(torch.nn.SyncBatchNorm(4)), find_unused_parameters=True)
    assert seen['device_ids'] is None
    assert seen['find_unused_parameters'] is True
    assert seen['module'](torch.randn(3, 4)).shape == (3, 4)  # which SyncBatchNorm refuses on a CPU


def test_the_schedule_follows_epochs_from_the_command_line_but_not_what_else_is_named():
    cfg = Config.fromfile(ROOT / 'configs/qbheat/qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py')
    assert follow_epochs(cfg, {'train_cfg.max_epochs': 20})['param_scheduler.1.end'] == 20
    assert 'param_scheduler.1.end' not in follow_epochs(cfg, {'train_cfg.max_epochs': 20, 'param_scheduler.1.end': 30})
    assert follow_epochs(cfg, {'optim_wrapper.optimizer.lr': 1.0}) == {}


@pytest.mark.parametrize('base', [0, -8, None, 1.5, '64'])
def test_a_batch_size_to_scale_from_is_positive(base):
    with pytest.raises(ValueError, match=rf'auto_scale_lr\.base_batch_size is {base!r}; set the batch size'):
        check_base_batch(Config(dict(auto_scale_lr=dict(enable=True, base_batch_size=base))))
    check_base_batch(Config(dict(auto_scale_lr=dict(enable=False, base_batch_size=base))))
    check_base_batch(Config(dict(auto_scale_lr=dict(enable=True, base_batch_size=64))))
    check_base_batch(Config({}))
