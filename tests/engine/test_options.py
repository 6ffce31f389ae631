"""Misspelt options are refused with the nearest field; new fields and list entries pass."""

import pytest
from helpers.models import ROOT
from mmengine.config import Config

from qbheat_mm.engine.launch import read_options
from qbheat_mm.engine.options import check_options

PRETRAIN = ROOT / 'configs/qbheat/qbheat_mobile-former-52m_1xb64-coslr-100e_folder.py'


@pytest.fixture(scope='module')
def cfg() -> Config:
    return Config.fromfile(PRETRAIN)


@pytest.mark.parametrize(
    ('key', 'nearest'),
    [
        ('optim_wraper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
        ('optim_wrapper.optimzer.lr', 'optim_wrapper.optimizer.lr'),
        ('train_cfg.max_epoch', 'train_cfg.max_epochs'),
        ('train_dataloader.batchsize', 'train_dataloader.batch_size'),
        ('default_hooks.chekpoint.interval', 'default_hooks.checkpoint.interval'),
        ('default_hooks.checkpoint.intervall', 'default_hooks.checkpoint.interval'),
        ('auto_scale_lr.enabled', 'auto_scale_lr.enable'),
        ('param_scheduler.1.ends', 'param_scheduler.1.end'),
        ('model.backbone.archs', 'model.backbone.arch'),
        ('load_form', 'load_from'),
        ('nonsense', ''),
    ],
)
def test_a_misspelt_field_is_refused_with_the_nearest(cfg, key, nearest):
    with pytest.raises(ValueError, match=f'{key}: the config has no such field. The nearest is {nearest}'):
        check_options(cfg, {key: 1})


@pytest.mark.parametrize(
    'key',
    [
        'optim_wrapper.optimizer.lr',
        'optim_wrapper.accumulative_counts',
        'optim_wrapper.optimizer.eps',
        'param_scheduler.0.end',
        'model.backbone.drop_path_rate',
        'model.backbone.init_cfg.checkpoint',
        'model.neck.anything',
        'train_dataloader.dataset.pipeline.0.type',
        'default_hooks.knn.interval',
        'default_hooks.checkpoint.save_best',
        'default_hooks.seed',
        'val_dataloader.batch_size',
        'load_from',
        'runner_type',
        'visualizer.vis_backends.0.type',
        'randomness.seed',
        'custom_hooks',
    ],
)
def test_fields_and_arguments_that_are_new_pass(cfg, key):
    assert check_options(cfg, {key: 1}) == []


def test_a_variable_of_the_config_file_is_told_with_the_field(cfg):
    (warning,) = check_options(cfg, dict(max_epochs=3))
    assert 'max_epochs changes no field. The field of this name is train_cfg.max_epochs' in warning


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('optim_wrapper.optimizer.lr', '1,5'),
        ('optim_wrapper.optimizer.lr', '0,0015'),
        ('optim_wrapper.optimizer.lr', '1e-3x'),
        ('optim_wrapper.optimizer.weight_decay', '[0.1]'),
        ('train_cfg.max_epochs', '1,5'),
        ('train_cfg.max_epochs', '3ep'),
        ('train_dataloader.batch_size', '64,0'),
        ('train_dataloader.num_workers', 'all'),
    ],
)
def test_a_number_that_is_none_is_refused(cfg, key, value):
    with pytest.raises(ValueError, match=rf'{key}: .* is not a number like .* write decimals with a point'):
        check_options(cfg, read_options([f'{key}={value}']))


@pytest.mark.parametrize(
    'option',
    [
        'optim_wrapper.optimizer.lr=1e-3',
        'optim_wrapper.optimizer.lr=1',
        'optim_wrapper.optimizer.lr=None',
        'train_cfg.max_epochs=3',
        'train_cfg.val_interval=3',
        'optim_wrapper.optimizer.betas=0.9,0.95',
        'model.patch_size=16,16',
        'train_dataloader.dataset.pipeline.1.scale=224,192',
        'default_hooks.checkpoint.save_best=auto',
        'auto_scale_lr.base_batch_size=64',
    ],
)
def test_numbers_and_lists_where_they_belong_pass(cfg, option):
    assert check_options(cfg, read_options([option])) == []
