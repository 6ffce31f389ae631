"""Count the parameters and FLOPs of a config's model, part by part.

    python tools/analysis_tools/get_flops.py configs/mobile_former/mobile-former-294m_8xb128-coslr-450e_in1k.py
    python tools/analysis_tools/get_flops.py CONFIG --shape 800 1216 --cfg-options model.backbone.arch=52m
    python tools/analysis_tools/get_flops.py configs/detection/CONFIG --shape 320 --time 5

The last row is the trained part: of a detector on a frozen backbone, all behind the backbone. ``--time`` adds the
milliseconds of a CPU core that an image takes, the least of several runs.

One multiply-add counts as one FLOP; norms are counted, element-wise operations are not, as fvcore does. Detectors
are counted to the outputs of their head, self-supervised models in their encoder, on a whole image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from math import prod

from qbheat_mm_cli import add_cfg_options, config_file


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=config_file, help='a config of mmpretrain or mmdet')
    parser.add_argument('--shape', type=int, nargs='+', default=[224], help='height and width, or one side of both')
    parser.add_argument('--time', type=int, metavar='RUNS', help='time the model and its backbone this many times')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if len(args.shape) > 2:
        parser.error(f'--shape takes a height and a width, not {len(args.shape)} numbers')
    return args


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.utils import import_modules_from_strings

from qbheat_mm.engine.launch import merge_options


def _shapes(values: list) -> list[list[int]]:
    return [value.type().sizes() for value in values if isinstance(value.type(), torch.TensorType)]


def _baddbmm_flops(inputs: list, outputs: list) -> int:
    _, left, right = _shapes(inputs)[:3]
    return prod(left) * right[-1]


def _attention_flops(inputs: list, outputs: list) -> int:
    query, key, value = _shapes(inputs)[:3]
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def build_model(cfg: Config) -> BaseModel:
    """The model of a config of mmpretrain or mmdet, in eval mode."""
    if custom_imports := cfg.get('custom_imports'):
        import_modules_from_strings(**custom_imports)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        return revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


def count_flops(model: BaseModel, shape: tuple[int, int]) -> FlopAnalyzer:
    """Trace the model's ``tensor`` mode on one image of (height, width)."""
    sample = BaseDataElement(
        metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1, 1))
    )
    model.forward = partial(model.forward, data_samples=[sample], mode='tensor')
    flops = FlopAnalyzer(model, torch.zeros(1, 3, *shape))
    # Attention that mmengine does not know.
    flops.set_op_handle('aten::baddbmm', _baddbmm_flops)
    flops.set_op_handle('aten::scaled_dot_product_attention', _attention_flops)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides a transformer layer in one operator
    try:
        with torch.no_grad():
            flops.total()  # traces; later reads come from its cache
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return flops


def report(model: BaseModel, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The parameters and FLOPs of each part of a model, and of all under ``total``."""
    flops, parameters = count_flops(model, shape).by_module(), parameter_count(model)
    parts = [name for name, module in model.named_children() if parameters[name]]
    return {name: (parameters[name], int(flops[name])) for name in parts} | {'total': (parameters[''], int(flops['']))}


def trained_part(model: BaseModel, counts: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Parameters that train, and the FLOPs of all but a frozen backbone."""
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    backbone = getattr(model, 'backbone', None)
    frozen = backbone is not None and not any(parameter.requires_grad for parameter in backbone.parameters())
    return parameters, counts['total'][1] - (counts['backbone'][1] if frozen else 0)


def milliseconds(call: Callable[[], object], runs: int) -> float:
    """The least time of a CPU core that a call took; the time of other processes does not count."""
    times = []
    with torch.no_grad():
        for _ in range(runs):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    return 1000 * min(times)


def main(argv: list[str] | None = None) -> None:
    """Print the table of the config named on the command line."""
    args = parse_args(argv)
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options)
    height, width = args.shape if len(args.shape) == 2 else args.shape * 2
    print(f'{"at " + str(height) + " x " + str(width):<20} {"parameters":>12} {"FLOPs":>16}')
    model = build_model(cfg)
    counts = report(model, (height, width))
    for name, (parameters, flops) in (counts | {'trained part': trained_part(model, counts)}).items():
        print(f'{name:<20} {parameters:>12,} {flops:>16,}')
    if args.time:
        image = torch.zeros(1, 3, height, width)
        for name, call in dict(total=model, backbone=getattr(model, 'backbone', None)).items():
            if call is not None:
                print(f'{name:<20} {milliseconds(partial(call, image), args.time):>12,.0f} ms of a CPU core')


if __name__ == '__main__':
    main()
