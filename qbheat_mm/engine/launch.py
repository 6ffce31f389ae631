"""From the command line to a runner on this machine; shared by tools/train.py and tools/test.py."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..arguments import check_arguments
from ..checkpoint import trust_init_cfg
from ..checkpoint.resume import choose_checkpoint
from ..checkpoint.work_dir import WorkDirError, claim
from ..compat import warn_of_missing_ops
from .options import check_options
from .schedules import epoch_options


def read_options(options: list[str]) -> dict:
    """Fields and values of ``KEY=VALUE`` texts, as mmengine's ``DictAction`` reads them."""
    read = argparse.Namespace()
    DictAction([], 'options')(None, read, options)
    return read.options


def merge_options(cfg: Config, options: list[str]) -> None:
    """Override fields of ``cfg`` with ``KEY=VALUE`` texts."""
    cfg.merge_from_dict(read_options(options))


def complete_config(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the shared arguments to ``cfg``, ``--cfg-options`` last, and make it run on this machine."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    options = read_options(args.cfg_options)
    for warning in check_options(cfg, options):
        notice(warning)
    cfg.merge_from_dict(follow_epochs(cfg, options) | options)
    complete_dataloaders(cfg, not args.no_pin_memory, not args.no_persistent_workers)
    check_base_batch(cfg)
    adapt_to_device(cfg)
    prepare_hooks(cfg, args.trust_checkpoint, args.allow_partial)


def follow_epochs(cfg: Config, options: dict) -> dict:
    """Options with which the schedule ends with the number of epochs that ``options`` set."""
    epochs = options.get('train_cfg.max_epochs')
    if not isinstance(epochs, int) or not (cfg.get('train_cfg') or {}).get('max_epochs'):
        return {}
    found = {key: value for key, value in epoch_options(cfg, epochs).items() if key not in options}
    if found:
        notice(f'the schedule ends with the {epochs} epochs: {", ".join(f"{k}={v}" for k, v in found.items())}.')
    return found


def check_base_batch(cfg: Config) -> None:
    """Check the batch size that the learning rate is scaled from.

    Raises:
        ValueError: If it is not a positive number.
    """
    scaling = cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if scaling.get('enable') and not (isinstance(base, int) and base > 0):
        raise ValueError(
            f'auto_scale_lr.base_batch_size is {base!r}; set the batch size, 1 or more, that the learning rate of the '
            'config is for, or auto_scale_lr.enable=False.'
        )


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a completed config."""
    init_process_group_on_cpu(cfg.launcher)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if isinstance(runner.model, nn.Module):  # FlexibleRunner builds it later
        warn_of_missing_ops(runner.model)
    return runner


def notice(text: str) -> None:
    """One line to the terminal and, once there is one, the log."""
    print_log(f'qbheat_mm: {text}', logger='current')


def adapt_to_device(cfg: Config) -> None:
    """Change ``cfg`` so that it runs on this machine, with a notice for each change.

    Without a GPU mixed precision becomes float32 (mmengine's AmpOptimWrapper asserts a GPU), and several processes run
    on the CPU. With one, mixed precision without a dtype takes bfloat16 where the device has it, and float16 with
    dynamic loss scaling otherwise.
    """
    on_gpu = torch.cuda.is_available()
    named = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if not on_gpu and named not in ('', '-1'):
        notice(f'CUDA_VISIBLE_DEVICES={named} names a GPU, but none can be used here; running on the CPU.')
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper':
        if on_gpu:
            _choose_precision(wrapper)
        else:
            wrapper['type'] = 'OptimWrapper'
            for key in ('dtype', 'loss_scale', 'use_fsdp'):
                wrapper.pop(key, None)
            notice('mixed precision needs a GPU; training in float32.')
    if not on_gpu and cfg.get('launcher', 'none') != 'none':
        unused = cfg.get('find_unused_parameters', False)
        cfg.setdefault('model_wrapper_cfg', dict(type='CPUDistributedDataParallel', find_unused_parameters=unused))


def _choose_precision(wrapper: dict) -> None:
    """Fill in the dtype of an AmpOptimWrapper config that names none."""
    if wrapper.get('dtype') is None:
        wrapper['dtype'] = 'bfloat16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'float16'
    if wrapper['dtype'] == 'bfloat16':
        wrapper['loss_scale'] = dict(enabled=False)  # bfloat16 has float32's range
    notice(f'mixed precision in {wrapper["dtype"]}.')


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's DistributedDataParallel for models on the CPU.

    mmengine 0.10's Runner passes the local rank as the number of a GPU, which torch refuses for a model on the CPU, and
    SyncBatchNorm refuses CPU tensors: it becomes BatchNorm, as mmengine does it in a single process.

    Args:
        module: The model.
        find_unused_parameters: As in PyTorch.
    """

    @check_arguments
    def __init__(self, module: nn.Module, find_unused_parameters: bool = False, **kwargs) -> None:
        if any(isinstance(each, nn.SyncBatchNorm) for each in module.modules()):
            notice('SyncBatchNorm needs GPUs; using BatchNorm.')
        super().__init__(
            revert_sync_batchnorm(module),
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=find_unused_parameters,
        )


def prepare_hooks(cfg: Config, trust: bool, partly: bool = False) -> None:
    """Guard checkpoints and schedule of any config, ours or not.

    Args:
        cfg: Changed in place.
        trust: Allow code in the checkpoints that the run reads.
        partly: Allow weights that do not all fit.
    """
    hooks = dict(cfg.get('default_hooks') or {})
    plain = hooks.get('plain_checkpoint') or dict(type='PlainCheckpointHook')
    hooks['plain_checkpoint'] = dict(
        plain, trust=trust or plain.get('trust', False), strict=plain.get('strict', True) and not partly
    )
    hooks.setdefault('effective_batch', dict(type='EffectiveBatchHook'))
    cfg.default_hooks = hooks
    if 'runner_type' in cfg:  # FlexibleRunner reads before any hook is called
        if trust:
            trust_init_cfg(cfg.get('model'))
        cfg.load_from = choose_checkpoint(cfg.get('load_from'), cfg.get('resume', False), cfg.work_dir, trust)


def init_process_group_on_cpu(launcher: str) -> None:
    """Make the gloo process group before mmengine's Runner does.

    mmengine 0.10 calls torch.cuda.set_device for ``--launcher pytorch`` and ``slurm`` even without a GPU; it leaves an
    existing process group alone.
    """
    if torch.cuda.is_available() or torch.distributed.is_initialized():
        return
    if launcher == 'slurm':
        _set_environment_from_slurm()
    if launcher in ('pytorch', 'slurm'):
        torch.distributed.init_process_group('gloo')


def _set_environment_from_slurm() -> None:
    """Rank, number of processes and the first node's address in the variables that PyTorch reads."""
    for ours, theirs in (('RANK', 'PROCID'), ('WORLD_SIZE', 'NTASKS'), ('LOCAL_RANK', 'LOCALID')):
        os.environ[ours] = os.environ[f'SLURM_{theirs}']
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        os.environ['MASTER_ADDR'] = nodes[0]


def claim_work_dir(cfg: Config) -> None:
    """Lock the work dir in the main process, before mmengine's Runner writes into it.

    Raises:
        WorkDirError: If another run has it, it holds checkpoints and is not resumed, or cannot be written to.
    """
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0' or cfg.launcher == 'none':
        claim(cfg.work_dir, cfg.get('resume', False))


def train(runner: Runner) -> None:
    """Train, and say so if the work dir goes meanwhile.

    Raises:
        WorkDirError: If it was removed.
    """
    try:
        runner.train()
    except OSError as error:
        if isinstance(error, WorkDirError) or Path(runner.log_dir).is_dir():
            raise
        raise WorkDirError(
            f'The work dir "{runner.work_dir}" was removed during the training, or can no longer be reached.'
        ) from error


def check_batches(runner: Runner) -> None:
    """Refuse to train on nothing: a run of no epoch, which mmengine ends in silence, or data that fill no batch.

    Raises:
        ValueError: With the length of the run, or the number of samples and the batch size.
    """
    runner._train_loop = runner.build_train_loop(runner._train_loop)  # the first thing that Runner.train does
    for name in ('max_epochs', 'max_iters'):
        length = runner.cfg.train_cfg.get(name)
        if length is not None and length < 1:
            raise ValueError(f'train_cfg.{name} is {length}: nothing would be trained.')
    loader = runner.train_dataloader
    if len(loader) == 0:
        samples = len(loader.dataset)
        raise ValueError(
            f'The training data have {samples} samples, which do not fill a batch of {loader.batch_size} in each '
            f'process. Set train_dataloader.batch_size={max(samples, 1)} or less, or take more data.'
        )


def complete_dataloaders(cfg: Config, pin_memory: bool, persistent_workers: bool) -> None:
    """Fill in what a dataloader config leaves out, as mmpretrain's tools do."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None:
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.pin_memory = pin_memory and loader.get('pin_memory', torch.cuda.is_available())
        loader.persistent_workers = (
            persistent_workers and loader.get('num_workers', 0) > 0 and loader.get('persistent_workers', True)
        )
