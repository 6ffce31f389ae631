"""Fitting a config to the machine it runs on; what tools/train.py and tools/test.py share."""

from __future__ import annotations

import os
import subprocess

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model.utils import _BatchNormXd
from mmengine.registry import MODELS
from mmengine.runner import Runner

from ..checkpoint import guard_init_cfg
from ..checkpoint.resume import choose_checkpoint

# SyncBatchNorm takes images and vectors, and so does what stands in for it.
MODELS.register_module('BNXd', module=_BatchNormXd)


def notice(text: str) -> None:
    """One line to the terminal and, once there is one, the log."""
    print_log(f'qbheat_mm: {text}', logger='current')


def adapt_to_device(cfg: Config) -> None:
    """Make ``cfg`` run on this machine, with a line of notice for each change.

    Without a GPU mixed precision becomes float32 (mmengine's AmpOptimWrapper asserts a GPU) and SyncBatchNorm becomes
    BatchNorm (it refuses CPU tensors), and several processes work on the CPU. With one, mixed precision that names no
    dtype takes bfloat16 where the device has it, and float16 with dynamic loss scaling otherwise.
    """
    on_gpu = torch.cuda.is_available()
    named = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if not on_gpu and named not in ('', '-1'):
        notice(f'CUDA_VISIBLE_DEVICES={named} names a GPU, but none can be used here; running on the CPU.')
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper':
        if on_gpu:
            choose_precision(wrapper)
        else:
            wrapper['type'] = 'OptimWrapper'
            for key in ('dtype', 'loss_scale', 'use_fsdp'):
                wrapper.pop(key, None)
            notice('mixed precision needs a GPU; training in float32.')
    if not on_gpu and _replace_sync_bn(cfg.get('model')):
        notice('SyncBatchNorm needs GPUs; using BatchNorm.')
    if not on_gpu and cfg.get('launcher', 'none') != 'none':
        _distribute_on_cpu(cfg)


def choose_precision(wrapper: dict) -> None:
    """Fill in the dtype of an AmpOptimWrapper config that names none."""
    if wrapper.get('dtype') is None:
        wrapper['dtype'] = 'bfloat16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'float16'
    if wrapper['dtype'] == 'bfloat16':
        wrapper['loss_scale'] = dict(enabled=False)  # bfloat16 has float32's range
    notice(f'mixed precision in {wrapper["dtype"]}.')


def _distribute_on_cpu(cfg: Config) -> None:
    """Name DistributedDataParallel with mmengine's own settings, but without a device.

    mmengine 0.10's Runner hands it the local rank as the number of a GPU, which torch refuses for a model on the CPU.
    """
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )


def _replace_sync_bn(node) -> bool:
    """Turn every SyncBN config below ``node`` into plain BatchNorm; whether there was one."""
    if isinstance(node, dict):
        found = node.get('type') in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN')
        if found:
            node['type'] = 'BNXd'
        return any([_replace_sync_bn(value) for value in node.values()]) or found
    if isinstance(node, (list, tuple)):
        return any([_replace_sync_bn(value) for value in node])
    return False


def guard_checkpoints(cfg: Config, trust: bool) -> None:
    """Let the run of any config, ours or not, read and write checkpoints of tensors and plain values only.

    Args:
        cfg: Changed in place.
        trust: Let code in the checkpoints that it reads be executed.
    """
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    cfg.default_hooks.checkpoint_guard = dict(type='CheckpointGuardHook', trust=trust)
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(hook.get('type') == 'PlainCheckpointHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='PlainCheckpointHook')]
    if 'runner_type' in cfg:  # FlexibleRunner reads before any hook is called
        guard_init_cfg(cfg.get('model'), trust)
        cfg.load_from = choose_checkpoint(cfg.get('load_from'), cfg.get('resume', False), cfg.work_dir, trust)


def init_process_group_on_cpu(launcher: str) -> None:
    """Make the gloo process group before mmengine's Runner does.

    mmengine 0.10 calls torch.cuda.set_device for ``--launcher pytorch`` and ``slurm`` without asking whether there is
    a GPU; it leaves a process group alone that exists.
    """
    if torch.cuda.is_available() or torch.distributed.is_initialized():
        return
    if launcher == 'slurm':
        _name_processes_as_slurm_does()
    if launcher in ('pytorch', 'slurm'):
        torch.distributed.init_process_group('gloo')


def _name_processes_as_slurm_does() -> None:
    """Rank, number of processes and the first node's address, where PyTorch looks for them."""
    for ours, theirs in (('RANK', 'PROCID'), ('WORLD_SIZE', 'NTASKS'), ('LOCAL_RANK', 'LOCALID')):
        os.environ[ours] = os.environ[f'SLURM_{theirs}']
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        os.environ['MASTER_ADDR'] = nodes[0]


def check_batches(runner: Runner) -> None:
    """Refuse training data that do not fill one batch, before mmengine finds that an epoch has no length.

    Raises:
        ValueError: With the number of samples and the batch size.
    """
    runner._train_loop = runner.build_train_loop(runner._train_loop)  # the first thing that Runner.train does
    loader = runner.train_dataloader
    if len(loader) == 0:
        samples = len(loader.dataset)
        raise ValueError(
            f'The training data have {samples} samples, which do not fill a batch of {loader.batch_size} in each '
            f'process. Set train_dataloader.batch_size={max(samples, 1)} or less, or take more data.'
        )


def complete_dataloaders(cfg: Config, pin_memory: bool = True, persistent_workers: bool = True) -> None:
    """Fill in what a dataloader config leaves out, as mmpretrain's tools do."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None:
            continue
        defaults = ConfigDict(pin_memory=torch.cuda.is_available(), persistent_workers=True)
        if cfg.get('default_scope') == 'mmpretrain':
            defaults.collate_fn = dict(type='default_collate')
        for key, value in defaults.items():
            loader.setdefault(key, value)
        if not pin_memory:
            loader.pin_memory = False
        if not persistent_workers or loader.get('num_workers', 0) == 0:
            loader.persistent_workers = False
