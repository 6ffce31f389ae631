"""What a frozen backbone saves: time and memory of a detector's training step, frozen beside trained.

    python tools/benchmarks/frozen_detection.py --size 256 --batch 2
    python tools/benchmarks/frozen_detection.py --size 256 --batch 2 --cpu-time     # a busy machine
    python tools/benchmarks/frozen_detection.py --device cuda --size 800 --rounds 20
    python tools/benchmarks/frozen_detection.py FROZEN_CONFIG [TRAINED_CONFIG]

Weights, images and boxes are random. Rounds of the two alternate, so that a busy machine slows both; medians are
shown. Memory is measured in a fresh process for each: on a CPU how much the process grew at its peak, on a GPU
PyTorch's peak. What is kept for the backward pass is counted as autograd stores it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import _options

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / 'detection'
TRAINED = '+trained'  # behind a config: the same with its backbone trained
CONFIGS = [str(FOLDER / f'detr_mobile-former-285m{frozen}_8xb2-150e_coco.py') for frozen in ('-frozen', '')]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='*', default=CONFIGS, help='two, or one with a frozen backbone; default: DETR')
    parser.add_argument('--size', type=int, default=256, help='side of the images in pixels')
    parser.add_argument('--batch', type=int, default=2, help='images in a step')
    parser.add_argument('--boxes', type=int, default=7, help='boxes in an image')
    args = _options.parse_args(parser, argv, rounds=10)
    if len(args.configs) == 1:
        args.configs = [*args.configs, args.configs[0] + TRAINED]
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import qbheat_mm  # noqa: F401  # before the packages that it patches

# isort: split
import torch
from _timing import MIB, Clock, median_rounds, setting, use_device, write_json
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn


class Step:
    """A detector with its optimizer, and a batch to train on."""

    def __init__(self, config: str, args: argparse.Namespace) -> None:
        register_all_modules()
        MMLogger.get_current_instance().setLevel('ERROR')  # a line for each parameter
        torch.manual_seed(0)
        cfg = Config.fromfile(config.removesuffix(TRAINED))
        cfg.model.backbone.init_cfg = None
        if config.endswith(TRAINED):
            cfg.model.backbone.update(frozen_stages=-1, norm_eval=True)
        self.model: nn.Module = MODELS.build(cfg.model).to(args.device).train()
        self.optimizer: OptimWrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        images = [torch.randint(256, (3, args.size, args.size), dtype=torch.uint8) for _ in range(args.batch)]
        self.data = dict(inputs=images, data_samples=[self._sample(args.size, args.boxes) for _ in images])

    @staticmethod
    def _sample(size: int, boxes: int) -> DetDataSample:
        shape = (size, size)
        sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape))
        corners = torch.rand(boxes, 2) * size / 2
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners, corners + torch.rand(boxes, 2) * size / 2], 1),
            labels=torch.zeros(boxes, dtype=torch.long),
        )
        return sample

    def __call__(self) -> None:
        """Take a step."""
        self.model.train_step(self.data, self.optimizer)

    def kept(self) -> float:
        """MiB that a forward pass keeps for the backward pass, parameters left out, each storage once."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        storages = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage  # held, so that no address comes twice
            return tensor

        data = self.model.data_preprocessor(self.data, True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = self.model(**data, mode='loss')  # noqa: F841  the graph lives as long as they do
        return sum(storage.nbytes() for storage in storages.values()) / MIB

    def gradients_and_state(self) -> float:
        """MiB of gradients and of the optimizer's state, after a step."""
        parameters = sum(
            value.numel() * value.element_size() for value in self.model.parameters() if value.requires_grad
        )
        states = self.optimizer.optimizer.state.values()
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return (parameters + sum(value.numel() * value.element_size() for value in tensors)) / MIB


def memory(config: str, args: argparse.Namespace) -> dict[str, float]:
    """What a run of three steps needs; called in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.set_num_threads(args.threads)
    step = Step(config, args)
    for _ in range(3):
        step()
    if args.device.type == 'cuda':
        peak = torch.cuda.max_memory_allocated() / MIB
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # Linux counts in KiB
    return dict(peak=peak, state=step.gradients_and_state(), kept=step.kept())


def measure_memory(config: str, args: argparse.Namespace) -> dict[str, float]:
    """`memory` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(memory, config, args).result()


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    args = parse_args(argv)
    use_device(args)
    needs = {config: measure_memory(config, args) for config in args.configs}
    times = median_rounds({config: Step(config, args) for config in args.configs}, args.rounds, Clock(args))
    figures = {
        Path(config).name.replace('.py', ''): dict(need, step_ms=1000 * times[config]) for config, need in needs.items()
    }
    machine = setting(args, 'size', 'batch', 'boxes')
    print(', '.join(f'{key} {value}' for key, value in machine.items()) + '\n')
    print('| config | step (ms) | peak (MiB) | kept for backward (MiB) | gradients and optimizer (MiB) |')
    print('|---|---|---|---|---|')
    for config, each in figures.items():
        print(f'| {config} | {each["step_ms"]:.0f} | {each["peak"]:.0f} | {each["kept"]:.1f} | {each["state"]:.1f} |')
    if len(figures) == 2:
        frozen, trained = figures.values()
        ratios = ' | '.join(f'{frozen[key] / trained[key]:.2f}' for key in ('step_ms', 'peak', 'kept', 'state'))
        print(f'| the first : the second | {ratios} |')
    write_json(args.out, dict(setting=machine, figures=figures))


if __name__ == '__main__':
    main()
