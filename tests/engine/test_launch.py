import pytest
import torch
from mmengine.config import Config

from qbheat_mm.engine.launch import adapt_to_device


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
@pytest.mark.parametrize('find_unused', [True, False])
def test_several_processes_on_a_cpu_name_no_device(launcher, find_unused):
    cfg = Config(dict(launcher=launcher, find_unused_parameters=find_unused))
    adapt_to_device(cfg)
    assert ('model_wrapper_cfg' in cfg) == (launcher == 'pytorch')
    if launcher == 'pytorch':
        assert cfg.model_wrapper_cfg.device_ids is None
        assert cfg.model_wrapper_cfg.find_unused_parameters is find_unused


def test_a_wrapper_that_is_named_is_left_alone():
    wrapper = dict(type='MMFullyShardedDataParallel')
    cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=wrapper))
    adapt_to_device(cfg)
    assert cfg.model_wrapper_cfg == wrapper
