"""What a quarter saves: QB-Heat's training steps beside MoCo-v2's, supervised ones and whole-image masked modeling.

    python tools/benchmarks/pretrain_throughput.py --device cuda --precision bf16 --batch-size 256 --workers 8
    python tools/benchmarks/pretrain_throughput.py --batch-size 8 --rounds 3 --cpu-time          # a busy machine
    python tools/benchmarks/pretrain_throughput.py --device cuda --precision bf16 --scaling batch-size=32,128,512,2048

Every method trains under mmengine's Runner as its ImageNet config says, on one backbone at output stride 16, in rounds
over all methods. Measured are

- steps on synthetic images that lie on the device, and steps from JPEG files through each config's own pipeline;
- the parts of a step, in rounds of their own, because to time a part is to wait for it;
- peak memory, each method in a process of its own;
- the limits: the bare encoder on the visible quarter, forward and backward, and the same step in a plain PyTorch loop.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from statistics import median

import _options

METHODS = {
    'qbheat': 'qbheat/qbheat_mobile-former-285m_8xb128-amp-coslr-200e_in1k.py',
    'supervised': 'mobile_former/mobile-former-285m_8xb128-coslr-450e_in1k.py',
    'mocov2': 'mocov2/mocov2_mobile-former-285m_8xb32-coslr-200e_in1k.py',
    'masked': 'qbheat/qbheat_mobile-former-285m_8xb128-amp-coslr-200e_in1k.py',
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument('--methods', default=','.join(METHODS), help='some of them, separated by commas')
    parser.add_argument('--arch', default='285m', choices=_options.ARCHITECTURES)
    parser.add_argument('--size', type=int, default=224, help='side of the images in pixels')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--precision', default='fp32', choices=['fp32', 'bf16', 'fp16'])
    parser.add_argument(
        '--compile',
        nargs='?',
        const='default',
        choices=['default', 'reduce-overhead', 'max-autotune'],
        help="compile encoders, decoders and losses; 'reduce-overhead' replays CUDA graphs",
    )
    parser.add_argument(
        '--channels-last', action='store_true', help="weights in channels_last memory (on a CPU they don't matter)"
    )
    parser.add_argument('--data', type=Path, help='a folder of JPEGs in class folders; default: 500 x 375 noise')
    parser.add_argument('--images', type=int, default=64, help='images to make')
    parser.add_argument('--packed', action='store_true', help='pack the files, and crop on the device')
    parser.add_argument('--workers', type=int, default=0, help='loader processes')
    parser.add_argument('--steps', type=int, default=2, help='steps of each method a round')
    parser.add_argument('--warmup', type=int, default=2, help='steps of each method before the first round')
    parser.add_argument('--synthetic', default=True, action=flag, help='steps on images that lie on the device')
    parser.add_argument('--files', default=True, action=flag, help='steps from files')
    parser.add_argument('--memory', default=True, action=flag, help='peak memory')
    parser.add_argument('--parts', default=True, action=flag, help='parts of the steps')
    parser.add_argument('--limits', default=True, action=flag, help='the bare encoder and the plain loop')
    parser.add_argument(
        '--scaling', metavar='OPTION=VALUES', help='batch-size=.. | size=.. | arch=.. | workers=.. | processes=..'
    )
    parser.add_argument('--figure', type=Path, help='a PNG file')
    for internal in ('--memory-of', '--launcher'):
        parser.add_argument(internal, default='none', help=argparse.SUPPRESS)
    parser.add_argument('--as-json', action='store_true', help='print JSON alone')
    args = _options.parse_args(parser, argv, rounds=5)
    args.methods = args.methods.split(',')
    if unknown := set(args.methods) - set(METHODS):
        parser.error(f'--methods: {", ".join(sorted(unknown))}: there are {", ".join(METHODS)}')
    if args.packed and not {'qbheat', 'mocov2'}.issuperset(args.methods):
        parser.error('--packed crops on the device, which is for --methods qbheat,mocov2')
    if args.figure and not (args.parts and args.synthetic and args.scaling is None):
        parser.error('--figure shows the parts of a step: leave --no-parts, --no-synthetic and --scaling out')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401  # before the packages that it patches

# isort: split
import numpy as np
import torch
from _timing import MIB, Clock, setting, use_device, write_json
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import LOOPS, OPTIM_WRAPPERS, init_default_scope
from mmengine.runner import IterBasedTrainLoop, Runner
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from mmpretrain.utils import get_ori_model
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qbheat_mm.datasets.packed import INDEX
from qbheat_mm.datasets.packing import pack_images
from qbheat_mm.engine.hooks.compile_hook import compile_parts
from qbheat_mm.engine.launch import adapt_to_device, init_process_group_on_cpu
from qbheat_mm.models.backbones.mobile_former import ARCH_SETTINGS
from qbheat_mm.models.utils import gather_patches

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
COMPILED = dict(
    qbheat=['backbone', 'neck', 'decoder', 'head.loss'],
    supervised=['backbone'],
    mocov2=['backbone', 'encoder_k.module'],
    masked=['backbone', 'decoder', 'head.loss'],
)
PARTS = ('data', 'transfer', 'encoder', 'neck', 'decoder', 'backward', 'optimizer', 'other')


# --- The fourth method -----------------------------------------------------------------------------------------------


@MODELS.register_module(force=True)
class WholeImageMasking(BaseSelfSupervisor):
    """SimMIM with a CNN: masked patches become a learned one, and the encoder sees the whole image.

    As many patches are masked as in QB-Heat, anywhere; the decoder and the loss are QB-Heat's.
    """

    def __init__(
        self, backbone: dict, decoder: dict, head: dict, data_preprocessor: dict, patch_size: int = 16
    ) -> None:
        super().__init__(backbone, head=head, data_preprocessor=data_preprocessor)
        self.decoder = MODELS.build(decoder)
        self.patch_size = patch_size
        self.token = nn.Parameter(torch.zeros(1, 3, patch_size, patch_size))

    def loss(self, inputs: Tensor, data_samples: list[DataSample], **kwargs) -> dict[str, Tensor]:
        """(N, 3, H, W) -> the loss on the masked patches."""
        cells = inputs.shape[-1] // self.patch_size
        order = torch.rand(len(inputs), cells**2, device=inputs.device).argsort(1)
        masked_ids = order[:, : cells**2 * 3 // 4]
        mask = torch.zeros_like(order).scatter(1, masked_ids, 1).view(-1, 1, cells, cells).float()
        mask = nn.functional.interpolate(mask, scale_factor=self.patch_size)
        masked = torch.where(mask > 0, self.token.repeat(1, 1, cells, cells), inputs)
        pred = self.decoder(self.backbone(masked)[-1], masked_ids)
        return self.head.loss(pred, gather_patches(inputs, masked_ids, self.patch_size))


# --- Runners that train when they are told to ------------------------------------------------------------------------


@OPTIM_WRAPPERS.register_module(force=True)
class CPUAutocastWrapper(OptimWrapper):
    """Mixed precision on a CPU, which mmengine's AmpOptimWrapper refuses."""

    def __init__(self, dtype: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass."""
        with super().optim_context(model), torch.autocast('cpu', self.dtype):
            yield


@LOOPS.register_module(force=True)
class RoundLoop(IterBasedTrainLoop):
    """Trains some iterations whenever :meth:`advance` is called, hooks and all."""

    def run(self) -> nn.Module:
        """Only what comes before the first iteration."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        return self.runner.model

    def open(self) -> None:
        """Start the workers."""
        self.batches = iter(self.dataloader)

    def advance(self, steps: int) -> None:
        """Train ``steps`` iterations."""
        for _ in range(steps):
            self.run_iter(self.fetch())

    def fetch(self) -> dict:
        """The next batch."""
        return next(self.batches)

    def close(self) -> None:
        """End the workers, so that they load nothing while others are timed."""
        del self.batches


class Synthetic(torch.utils.data.Dataset):
    """As many indices as a loop may want; the collate function has the batch."""

    metainfo: dict = {}

    def __len__(self) -> int:
        return 10**8

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        """A batch at once: 256 calls would show in a step of a fast GPU."""
        return indices


class EndlessSampler(torch.utils.data.SequentialSampler):
    """Counts on; ``epoch`` tells DeterministicSeedHook that a pass of it is one."""

    epoch = 0


def synthetic_batch(method: str, args: argparse.Namespace) -> dict:
    """Bytes of noise on the device, with what the method reads besides."""

    def images() -> Tensor:
        return torch.randint(256, (args.batch_size, 3, args.size, args.size), dtype=torch.uint8, device=args.device)

    samples = [DataSample() for _ in range(args.batch_size)]
    for sample in samples:
        corner = np.random.randint(2, size=2) * (args.size // 32)
        sample.set_field(tuple(corner.tolist()), 'visible_origin', field_type='metainfo')
        sample.set_gt_label(np.random.randint(1000))
    return dict(inputs=[images(), images()] if method == 'mocov2' else images(), data_samples=samples)


def file_loader(method: str, cfg: Config, args: argparse.Namespace) -> dict:
    """The config's own dataloader on the folder of JPEGs, or on the pack of it."""
    pipeline = resized(cfg.train_dataloader.dataset.pipeline, args.size)
    kind = dict(type='PackedImageDataset', device_crops=True) if args.packed else dict(type='ImageFolderDataset')
    dataset = dict(kind, data_root=str(args.data), with_label=method == 'supervised', pipeline=pipeline)
    loader = dict(
        batch_size=args.batch_size,
        num_workers=args.workers,
        pin_memory=args.device.type == 'cuda',
        persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='collate_views' if args.packed else 'default_collate'),
        dataset=dict(type='RepeatDataset', times=100, dataset=dataset),  # no epoch ends within a measurement
    )
    return loader | (dict(prefetch_factor=2) if args.workers else {})


def resized(steps, size: int):
    """A pipeline for images of this size, views within it too."""
    if isinstance(steps, (list, tuple)):
        return [resized(step, size) for step in steps]
    changes = dict(RandomResizedCrop='scale', TorchRandomResizedCrop='scale')
    step = {key: resized(value, size) if key == 'transforms' else value for key, value in steps.items()}
    return dict(step, **{changes[step['type']]: size}) if step['type'] in changes else step


def build_config(method: str, args: argparse.Namespace, from_files: bool) -> Config:
    """The method's config on the backbone, size, batch and precision that are asked for."""
    cfg = Config.fromfile(CONFIGS / METHODS[method])
    channels = ARCH_SETTINGS[args.arch]['blocks'][-1][1]
    cfg.model.backbone.update(arch=args.arch, output_stride=16)
    if method == 'supervised':
        cfg.model.head.update(in_channels=channels, token_dims=ARCH_SETTINGS[args.arch]['token_dims'])
        cfg.model.data_preprocessor = dict(cfg.data_preprocessor, type='ClsDataPreprocessor')
    else:
        cfg.model.neck.in_channels = channels
    if method in ('qbheat', 'masked'):
        cfg.model.decoder.in_channels = channels
    if method == 'masked':
        cfg.model.type = 'WholeImageMasking'
        cfg.model.pop('neck')
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg.pop(key, None)
    cfg.train_cfg = dict(type='RoundLoop', max_iters=10**8)
    cfg.param_scheduler = None  # the length of an epoch is not known here; a scheduler costs microseconds
    cfg.auto_scale_lr = None
    cfg.optim_wrapper.update(precision_wrapper(args))
    cfg.default_hooks.checkpoint = None
    if args.compile:
        cfg.default_hooks.compile = dict(type='CompileHook', modules=COMPILED[method], mode=args.compile)
    cfg.train_dataloader = file_loader(method, cfg, args) if from_files else {}
    if from_files and args.packed:
        cfg.model.data_preprocessor.type = 'ViewDataPreprocessor'
    cfg.env_cfg.cudnn_benchmark = True
    cfg.log_level, cfg.launcher = 'ERROR', args.launcher
    cfg.work_dir, cfg.experiment_name = args.work_dir, f'{method}_{from_files}_{id(cfg)}'
    return cfg


def precision_wrapper(args: argparse.Namespace) -> dict:
    """The optimizer wrapper's settings for the precision."""
    if args.precision == 'fp32':
        return dict(type='OptimWrapper')
    dtype = dict(bf16='bfloat16', fp16='float16')[args.precision]
    if args.device.type == 'cpu':
        return dict(type='CPUAutocastWrapper', dtype=dtype)
    scaling = dict(loss_scale=dict(enabled=False)) if dtype == 'bfloat16' else {}
    return dict(type='AmpOptimWrapper', dtype=dtype, **scaling)


def start(method: str, args: argparse.Namespace, from_files: bool = False) -> Runner:
    """A Runner that is ready for its first iteration."""
    torch.manual_seed(0)
    cfg = build_config(method, args, from_files)
    if args.device.type == 'cpu':
        adapt_to_device(cfg)
    runner = Runner.from_cfg(cfg)
    if args.channels_last:
        get_ori_model(runner.model).to(memory_format=torch.channels_last)
    if not from_files:  # a loader that is an object cannot pass through a config
        batch = synthetic_batch(method, args)
        dataset = Synthetic()
        runner._train_dataloader = DataLoader(
            dataset, args.batch_size, sampler=EndlessSampler(dataset), collate_fn=lambda _: batch
        )
    runner.train()
    return runner


# --- The parts of a step ---------------------------------------------------------------------------------------------


class Stopwatch:
    """Adds up the time spent in wrapped functions, less what wrapped functions within them take."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.totals: dict[str, float] = defaultdict(float)
        self.inner = [0.0]

    def wrap(self, function: Callable, part: str) -> Callable:
        """The function, timed as a part."""

        def timed(*args, **kwargs):
            start = self.clock()
            self.inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = self.clock() - start
                self.totals[part] += whole - self.inner.pop()
                self.inner[-1] += whole

        return timed

    def wrap_method(self, owner: object, name: str, part: str) -> Callable[[], None]:
        """Time a method of one object, compiled or not; returns what undoes it."""
        compiled = vars(owner).get(name)
        setattr(owner, name, self.wrap(getattr(owner, name), part))
        return lambda: delattr(owner, name) if compiled is None else setattr(owner, name, compiled)

    def wrap_module(self, module: nn.Module, part: str) -> Callable[[], None]:
        """Time the calls of a module, compiled or not; returns what undoes it."""
        compiled = module._compiled_call_impl
        module._compiled_call_impl = self.wrap(compiled or module._call_impl, part)

        def undo() -> None:
            module._compiled_call_impl = compiled

        return undo


def time_parts(runner: Runner, steps: int, clock: Clock) -> dict[str, float]:
    """Seconds a step spends in each of its parts."""
    model, wrapper, loop = get_ori_model(runner.model), runner.optim_wrapper, runner.train_loop
    watch = Stopwatch(clock)
    undo = [
        watch.wrap_method(loop, 'fetch', 'data'),
        watch.wrap_module(model.data_preprocessor, 'transfer'),
        watch.wrap_module(model.backbone, 'encoder'),
        watch.wrap_method(model.head, 'loss', 'decoder'),
        watch.wrap_method(wrapper, 'backward', 'backward'),
        watch.wrap_method(wrapper, 'step', 'optimizer'),
        watch.wrap_method(wrapper, 'zero_grad', 'optimizer'),
    ]
    if getattr(model, 'neck', None) is not None:
        undo.append(watch.wrap_module(model.neck, 'neck'))
    if hasattr(model, 'decoder'):
        undo.append(watch.wrap_module(model.decoder, 'decoder'))
    if hasattr(model, 'encoder_k'):
        undo.append(watch.wrap_module(model.encoder_k, 'encoder'))
    watch.wrap(loop.advance, 'other')(steps)
    for each in undo:
        each()
    return {part: watch.totals[part] / steps for part in PARTS}


# --- What is compared ------------------------------------------------------------------------------------------------


def autocast(args: argparse.Namespace) -> dict:
    """Arguments of torch.autocast."""
    dtype = torch.float16 if args.precision == 'fp16' else torch.bfloat16
    return dict(device_type=args.device.type, dtype=dtype, enabled=args.precision != 'fp32')


def plain_loop(runner: Runner, args: argparse.Namespace) -> Callable[[int], None]:
    """The runner's step, written out in PyTorch on a model and optimizer of its own."""
    cfg = runner.cfg
    model = MODELS.build(cfg.model).to(args.device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimizer, limit = wrapper.optimizer, wrapper.clip_grad_kwargs.get('max_norm')
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.precision == 'fp16')
    batch = next(iter(runner.train_dataloader))
    if args.compile:
        compile_parts(model, COMPILED['qbheat'], mode=args.compile)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)

    def advance(steps: int) -> None:
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(**autocast(args)):
                data = model.data_preprocessor(batch, True)
                loss = sum(model.loss(**data).values())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, limit)
            scaler.step(optimizer)
            scaler.update()
            loss.item()  # every step is logged

    return advance


def bare_encoder(runner: Runner, args: argparse.Namespace) -> Callable[[int], None]:
    """Forward and backward of the encoder on the visible quarter: what no training step can beat."""
    encoder = MODELS.build(runner.cfg.model.backbone).to(args.device).train()
    quarter = torch.randn(args.batch_size, 3, args.size // 2, args.size // 2, device=args.device)
    if args.compile:
        encoder.compile(mode=args.compile)
    if args.channels_last:
        encoder.to(memory_format=torch.channels_last)
        quarter = quarter.contiguous(memory_format=torch.channels_last)

    def advance(steps: int) -> None:
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            encoder.zero_grad()
            with torch.autocast(**autocast(args)):
                features = encoder(quarter)[-1]
            features.backward(torch.ones_like(features))

    return advance


def in_rounds(entrants: dict[str, Callable[[int], None]], args: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """The median seconds of a step of each, in rounds over all."""
    for advance in entrants.values():
        advance(args.warmup)
    times: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(args.rounds):
        for name, advance in entrants.items():
            times[name].append(clock.time(advance, args.steps) / args.steps)
    return {name: median(record) for name, record in times.items()}


def median_parts(runners: dict[str, Runner], args: argparse.Namespace, clock: Clock) -> dict[str, dict[str, float]]:
    """The median seconds of each part of each method's step, in rounds over all."""
    rounds = [
        {name: time_parts(runner, args.steps, clock) for name, runner in runners.items()} for _ in range(args.rounds)
    ]
    return {name: {part: median(each[name][part] for each in rounds) for part in PARTS} for name in runners}


def compute_bound(args: argparse.Namespace, clock: Clock) -> dict:
    """Steps on images that lie on the device."""
    runners = {method: start(method, args) for method in args.methods}
    for runner in runners.values():
        runner.train_loop.open()
    entrants = {name: runner.train_loop.advance for name, runner in runners.items()}
    if 'qbheat' in runners and args.limits:
        entrants['plain loop'] = plain_loop(runners['qbheat'], args)
        entrants['bare encoder'] = bare_encoder(runners['qbheat'], args)
    figures = dict(step_s=in_rounds(entrants, args, clock))
    return figures | (dict(parts_s=median_parts(runners, args, clock)) if args.parts else {})


def from_files(args: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """Steps from JPEG files; a method's workers run only while it is timed, and first fill and drain their queue."""
    loops = {method: start(method, args, from_files=True).train_loop for method in args.methods}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.rounds):
        for name, loop in loops.items():
            loop.open()
            loop.advance(2 * args.workers + 1)
            times[name].append(clock.time(loop.advance, args.steps) / args.steps)
            loop.close()
    return {name: median(record) for name, record in times.items()}


def write_jpegs(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> Path:
    """Images of ImageNet's usual size in two class folders: octaves of noise, as detailed as photos at quality 90."""
    rng = np.random.default_rng(0)
    for i in range(count):
        canvas = np.zeros((size[1], size[0], 3))
        for octave in range(1, 9):
            cells = 2**octave
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            canvas += (np.asarray(noise.resize(size, Image.Resampling.BICUBIC)) - 127.5) * 0.7**octave
        path = folder / f'class{i % 2}' / f'{i:04d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((canvas + 127.5).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def memory(method: str, args: argparse.Namespace) -> float:
    """MiB that three steps need at their peak; for a process of its own."""
    before = resident_peak()
    loop = start(method, args).train_loop
    loop.open()
    loop.advance(3)
    if args.device.type == 'cuda':
        return torch.cuda.max_memory_allocated() / MIB
    return resident_peak() - before


def resident_peak() -> float:
    """MiB of this process' memory at its peak; getrusage would begin with the parent's."""
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


def child(argv: list[str], processes: int = 1) -> dict:
    """What this script prints in other processes, the last line of it as JSON."""
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}'] * (processes > 1)
    command = [sys.executable, *launcher, __file__, *argv, *['--launcher', 'pytorch'] * (processes > 1)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} failed:\n{done.stdout}\n{done.stderr}')
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- Reports ---------------------------------------------------------------------------------------------------------


def ratios(figures: dict) -> dict[str, float]:
    """Ratios of throughput, time and memory, as far as they were measured."""
    step, files, mib = (figures.get(key, {}) for key in ('step_s', 'file_step_s', 'peak_mib'))

    def ratio(of: dict, numerator: str, denominator: str) -> float | None:
        return of[numerator] / of[denominator] if numerator in of and denominator in of else None

    found = {
        'qbheat : supervised, images/s': ratio(step, 'supervised', 'qbheat'),
        'qbheat : mocov2, images/s': ratio(step, 'mocov2', 'qbheat'),
        'qbheat : masked, images/s': ratio(step, 'masked', 'qbheat'),
        'qbheat : mocov2, images/s from files': ratio(files, 'mocov2', 'qbheat'),
        'step : bare encoder, time': ratio(step, 'qbheat', 'bare encoder'),
        'step under the Runner : plain loop, time': ratio(step, 'qbheat', 'plain loop'),
        'qbheat : supervised, peak memory': ratio(mib, 'qbheat', 'supervised'),
    }
    return {name: value for name, value in found.items() if value is not None}


def table(figures: dict) -> str:
    """Everything in Markdown."""
    batch = figures['setting']['batch_size'] * figures['setting']['processes']
    lines = ['| | images/s | step, ms | ' + ' | '.join(PARTS) + ' | peak, MiB | images/s from files |']
    lines.append('|---' * (len(PARTS) + 5) + '|')
    steps, files = figures.get('step_s', {}), figures.get('file_step_s', {})
    for name in {**steps, **files, **figures.get('peak_mib', {})}:
        parts = figures.get('parts_s', {}).get(name, {})
        cells = [f'{1e3 * parts[part]:.1f}' if part in parts else '' for part in PARTS]
        mib = figures.get('peak_mib', {}).get(name)
        speed = [f'{batch / steps[name]:.1f}', f'{1e3 * steps[name]:.1f}'] if name in steps else ['', '']
        cells = [*speed, *cells, '' if mib is None else f'{mib:.0f}']
        cells.append(f'{batch / files[name]:.1f}' if name in files else '')
        lines.append(f'| {name} | {" | ".join(cells)} |')
    if figures.get('ratios'):
        lines += ['', '| ratio | measured |', '|---|---|']
        lines += [f'| {name} | {value:.2f} |' for name, value in figures['ratios'].items()]
    return '\n'.join(lines)


def draw(figures: dict, path: Path) -> None:
    """Stacked bars: where the milliseconds of an image go."""
    from matplotlib import pyplot as plt

    machine = figures['setting']
    parts, batch = figures['parts_s'], machine['batch_size']
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(parts) + 1.6), layout='constrained')
    left = np.zeros(len(parts))
    for part, color in zip(PARTS, plt.get_cmap('tab10').colors):
        widths = np.array([1e3 * each[part] / batch for each in parts.values()])
        axes.barh(list(parts), widths, left=left, label=part, color=color)
        left += widths
    for row, (name, width) in enumerate(zip(parts, left)):
        axes.text(width, row, f' {batch / figures["step_s"][name]:.0f} images/s', va='center')
    axes.set(xlabel='ms an image', xlim=(0, 1.2 * left.max()))
    axes.invert_yaxis()
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(
        f'A training step, {machine["arch"]}, {machine["size"]} px, batch {batch}, {machine["precision"]}, '
        f'{machine["processor"]}',
        fontsize=9,
    )
    figure.legend(loc='outside lower center', ncols=len(PARTS), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def measure(args: argparse.Namespace, argv: list[str]) -> dict:
    """All figures that are asked for."""
    clock = Clock(args)
    settings = ('arch', 'batch_size', 'size', 'precision', 'compile', 'channels_last', 'packed', 'workers', 'steps')
    machine = setting(args, *settings) | dict(data=str(args.data or 'none'), processes=get_world_size())
    figures: dict = dict(setting=machine)

    def add(**found: dict) -> None:
        """Keep what was measured: on a slow machine the rest may take an hour."""
        figures.update(found)
        figures['ratios'] = ratios(figures)
        if is_main_process() and not args.as_json:
            write_json(args.out, figures)

    if args.synthetic:
        add(**compute_bound(args, clock))
    if args.memory:
        with ThreadPoolExecutor(1 if args.device.type == 'cpu' else len(args.methods)) as pool:
            peaks = pool.map(lambda name: child([*argv, '--memory-of', name])['peak_mib'], args.methods)
            add(peak_mib=dict(zip(args.methods, peaks)))
    if args.files:
        args.data = make_data(args)
        add(file_step_s=from_files(args, clock))
    return figures


def make_data(args: argparse.Namespace) -> Path:
    """The folder to read images from: files, or a pack of them."""
    folder = args.data
    if folder is None:
        folder = write_jpegs(Path(args.work_dir) / 'jpegs', args.images)
    if args.packed and not (folder / INDEX).is_file():
        folder = pack_images(folder, Path(args.work_dir) / 'pack', size=256).folder
    return folder


def scaling(args: argparse.Namespace, argv: list[str]) -> dict:
    """Images per second over one quantity, each value in a process of its own."""
    quantity, _, values = args.scaling.partition('=')
    rows = {}
    if quantity == 'workers':
        argv = [*argv, '--data', str(make_data(args))]
    for value in values.split(','):
        option = [] if quantity == 'processes' else [f'--{quantity}', value]
        files = quantity == 'workers'
        bare = ['--no-memory', '--no-limits', '--no-parts', '--as-json', '--no-synthetic' if files else '--no-files']
        figures = child([*argv, '--scaling', '', *option, *bare], int(value) if quantity == 'processes' else 1)
        batch = figures['setting']['batch_size'] * figures['setting']['processes']
        times = figures['file_step_s' if files else 'step_s']
        rows[value] = {name: batch / seconds for name, seconds in times.items()}
        if not args.as_json:
            print(
                f'{quantity} {value}: ' + ', '.join(f'{name} {rate:.1f}' for name, rate in rows[value].items()),
                flush=True,
            )
    return dict(setting=figures['setting'], quantity=quantity, images_per_s=rows)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write what was asked for."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    use_device(args)
    if args.device.type == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # the Runner would take the GPU
    init_default_scope('mmpretrain')
    MMLogger.get_current_instance().setLevel('ERROR')  # a line for each parameter
    init_process_group_on_cpu(args.launcher)
    with tempfile.TemporaryDirectory() as args.work_dir:
        if args.memory_of != 'none':
            print(json.dumps(dict(peak_mib=memory(args.memory_of, copy(args)))))
            return
        figures = scaling(args, argv) if args.scaling else measure(args, argv)
    if not is_main_process():
        return
    if args.as_json:
        print(json.dumps(figures))
    elif not args.scaling:
        print('; '.join(f'{key} {value}' for key, value in figures['setting'].items()) + '\n\n' + table(figures))
    if args.scaling:
        write_json(args.out, figures)
    if args.figure:
        draw(figures, args.figure)


if __name__ == '__main__':
    main()
