"""What a GPU does and how fast: tests, throughput, the neck's share, detection, feeding; tables of all of it.

    python tools/benchmarks/gpu_report.py                      # ten minutes on one GPU; call it again to resume
    python tools/benchmarks/gpu_report.py --data data/imagenette128 --minutes 60
    python tools/benchmarks/gpu_report.py --quick              # every part at its smallest, on a CPU, in two minutes

Parts run in order of value, each in processes of its own and for a limited time. A part's figures are written as soon
as it ends, to OUT/PART.json, so a later call runs what is missing; OUT/PART.log has its output. At the end the tables
of tools/benchmarks/README.md are made from the JSON files; --quick prints them only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name('README.md')
BEGIN, END = '<!-- gpu-report: made by gpu_report.py -->', '<!-- end of gpu-report -->'
CONDITIONAL = 'configs/detection/conditional-detr_mobile-former-285m-frozen_8xb2-50e_coco.py'
PACKAGES = ('torch', 'triton', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet')
# What the project wants of a GPU: at least (+) or at most (-).
TARGETS = {
    'step : bare encoder, time': -1.3,
    'qbheat : supervised, images/s': +3.3,
    'qbheat : mocov2, images/s': +4.5,
    'qbheat : masked, images/s': +3.0,
    'qbheat : supervised, peak memory': -0.4,
    'step under the Runner : plain loop, time': -1.05,
}
NECK_TARGET, STEP_TARGET, PEAK_TARGET = 0.02, 0.7, 0.6  # share of a step; frozen : trained


@dataclass(frozen=True)
class Part:
    """A command that writes figures to the file in the place of ``{out}``.

    Attributes:
        command: Arguments of Python.
        seconds: Its time box, on a GPU.
        read: Makes the figures of that file.
        codes: Exit codes after which the file is complete.
    """

    command: tuple[str, ...]
    seconds: int
    read: Callable[[Path], dict] = lambda path: json.loads(path.read_text())
    codes: tuple[int, ...] = (0,)


def environment(args: argparse.Namespace) -> dict:
    """The machine, and the versions of what runs on it."""
    versions = {each.metadata['Name']: each.version for each in distributions()}
    found = {name: version for name, version in versions.items() if name and name.removeprefix('onedl-') in PACKAGES}
    machine = dict(python=platform.python_version(), cores=os.cpu_count(), **found)
    if args.device == 'cpu':
        return dict(machine, device=platform.machine())
    import torch  # seconds: after the arguments

    properties = torch.cuda.get_device_properties(0)
    return dict(
        machine,
        device=properties.name,
        gib=round(properties.total_memory / 2**30, 1),
        multiprocessors=properties.multi_processor_count,
        capability=f'{properties.major}.{properties.minor}',
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        gpus=torch.cuda.device_count(),
    )


def read_tests(path: Path) -> dict:
    """Counts and failures of pytest's JUnit file."""
    suite = ElementTree.parse(path).getroot().find('testsuite')
    counts = {name: int(suite.get(name)) for name in ('tests', 'skipped', 'failures', 'errors')}
    failed = {
        case.get('name'): (case.find('failure') if case.find('failure') is not None else case.find('error')).get(
            'message', ''
        )[:500]
        for case in suite.iter('testcase')
        if case.find('failure') is not None or case.find('error') is not None
    }
    return counts | dict(seconds=float(suite.get('time')), failed=failed)


def read_study(path: Path) -> dict:
    """The records of a study."""
    return dict(records=[json.loads(line) for line in path.read_text().splitlines()])


def parts(args: argparse.Namespace) -> dict[str, Part]:
    """All parts, in order of value."""
    quick = args.quick
    device = ('--device', args.device)
    small = ('--arch=26m', '--size=64', '--images=4') if quick else ('--arch=285m', '--size=224', '--images=512')
    batches = (2, 4) if quick else (256, 1024)
    some_tests = ('-k', 'whitening or inferencer or (ten_steps and qbheat-float32)')  # which a CPU does in seconds
    all_tests = (f'--numprocesses={min(8, os.cpu_count() or 1)}',)

    def tool(name: str, seconds: int, *options: str) -> Part:
        return Part((f'tools/benchmarks/{name}.py', *device, '--out={out}', *options), seconds)

    def throughput(batch: int, rounds: int, steps: int, seconds: int, *options: str) -> Part:
        repeats = (1, 1, 1) if quick else (rounds, steps, 3)
        repeated = (f'--{name}={each}' for name, each in zip(('rounds', 'steps', 'warmup'), repeats))
        precision = '--precision=bf16'
        return tool('pretrain_throughput', seconds, *small, *repeated, precision, f'--batch-size={batch}', *options)

    def feeding(*options: str) -> Part:
        workers = '1' if quick else '4,16'
        return throughput(batches[0], 3, 4, 120, '--methods=qbheat', f'--scaling=workers={workers}', *options)

    one = ('--methods=qbheat', '--no-memory', '--no-parts', '--no-files')
    graphs = (*one, '--compile=reduce-overhead')
    frozen = ('--size=64', '--batch=1', '--rounds=1') if quick else ('--size=800', '--rounds=20')
    neck = ('--arch=26m', '--size=64', '--batch-size=2', '--rounds=1') if quick else ('--batch-size=256',)
    tests = ('-m', 'pytest', '-q', '-m', 'gpu', 'tests/gpu', '--junitxml={out}', *(some_tests if quick else all_tests))
    found = {
        'throughput_eager': throughput(
            batches[0], 3, 10, 150, '--no-files', *(('--no-memory', '--no-parts') if quick else ())
        ),
        'throughput_large_batch': throughput(
            batches[1], 3, 5, 150, '--no-parts', '--no-files', *(one if quick else ('--no-memory',))
        ),
        'throughput_channels_last': throughput(
            batches[1], 3, 5, 90, *one, '--methods=qbheat,supervised', '--channels-last'
        ),
        'neck': tool('heat_neck_share', 90, *neck, '--bf16'),
        'frozen_detr': tool('frozen_detection', 90, *frozen),
        'feeding_packed': feeding('--packed'),
        'feeding_files': feeding(),
        'tests': Part(tests, 270, read_tests, codes=(0, 1)),
        'throughput_cuda_graphs': throughput(batches[0], 5, 20, 300, *graphs),  # minutes to compile
        'throughput_large_batch_cuda_graphs': throughput(batches[1], 3, 10, 300, *graphs),
        'frozen_conditional_detr': tool('frozen_detection', 90, CONDITIONAL, *frozen),
    }
    if quick:  # these repeat others
        for name in ('throughput_large_batch_cuda_graphs', 'throughput_channels_last', 'frozen_conditional_detr'):
            del found[name]
    if args.data:
        study = ('studies/run.py', 'studies/imagenette.yaml', '--only', 'qbheat/seed0/*', '--data')
        folders = (f'images={args.data.resolve()}', '--results={out}.d', f'--work-dir={args.out.resolve()}/study')
        found['study'] = Part((*study, *folders), 3600, read_study)
    return found


def run(name: str, part: Part, args: argparse.Namespace, seconds: float) -> str:
    """Run a part, and write its figures where it ends in time; returns what became of it."""
    partial = (args.out / f'{name}.partial').resolve()
    partial.unlink(missing_ok=True)
    command = [sys.executable, *(each.replace('{out}', str(partial)) for each in part.command)]
    paths = [str(ROOT), str(ROOT / 'tests'), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    variables = dict(PYTHONPATH=os.pathsep.join(filter(None, paths)), QBHEAT_TEST_DEVICE=args.device)
    if args.device == 'cpu':
        variables.update(CUDA_VISIBLE_DEVICES='-1', TORCHDYNAMO_DISABLE='1')  # compilation takes minutes there
    began = time.monotonic()
    with (args.out / f'{name}.log').open('w') as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # workers and processes of its own, too
            process.wait()
            return f'cut off after {seconds:.0f} s'
    source = partial.with_name(f'{partial.name}.d') / 'imagenette/runs.jsonl' if name == 'study' else partial
    if code not in part.codes or not source.is_file():
        return f'failed, see {args.out / name}.log'
    write(args.out / f'{name}.json', part.read(source))
    partial.unlink(missing_ok=True)
    return f'done in {time.monotonic() - began:.0f} s'


def write(path: Path, figures: dict) -> None:
    """Write a JSON file as a whole."""
    partial = path.with_suffix('.new')
    partial.write_text(json.dumps(figures, indent=1) + '\n')
    partial.replace(path)


# --- Tables ----------------------------------------------------------------------------------------------------------


def row(*cells: object) -> str:
    """A line of a Markdown table."""
    return f'| {" | ".join(map(str, cells))} |'


def header(*cells: str) -> list[str]:
    """The first lines of a Markdown table."""
    return ['', row(*cells), '|---' * len(cells) + '|']


def verdict(value: float, target: float) -> str:
    """Whether a figure meets its target, at least if it is positive, at most if it is negative."""
    return 'met' if (value >= target if target > 0 else value <= -target) else 'not met'


def throughput_tables(results: dict[str, dict]) -> list[str]:
    """Images per second and the ratios that have targets, a column for each way of running."""
    columns = {name.removeprefix('throughput_'): each for name, each in results.items() if name.startswith('through')}
    if not columns:
        return []
    lines = header('images/s', *(f'{name}, batch {each["setting"]["batch_size"]}' for name, each in columns.items()))
    names = dict.fromkeys(name for each in columns.values() for name in each['step_s'])
    for name in names:
        rates = (each['setting']['batch_size'] / each['step_s'].get(name, float('inf')) for each in columns.values())
        lines.append(row(name, *(f'{rate:.0f}' if rate else '' for rate in rates)))
    for name in dict.fromkeys(name for each in columns.values() for name in each.get('peak_mib', {})):
        peaks = (each.get('peak_mib', {}).get(name) for each in columns.values())
        lines.append(row(f'{name}, peak MiB', *('' if peak is None else f'{peak:.0f}' for peak in peaks)))
    lines += header('ratio', *columns, 'target')
    for name, target in TARGETS.items():
        values = [each['ratios'].get(name) for each in columns.values()]
        cells = ('' if value is None else f'{value:.2f}, {verdict(value, target)}' for value in values)
        lines.append(row(name, *cells, f'{"at least" if target > 0 else "at most"} {abs(target)}'))
    return lines


def neck_table(figures: dict) -> list[str]:
    """What each scheme of the neck takes of a step."""
    lines = header('scheme', 'direction', 'commute', 'neck, ms', 'share of a step', f'at most {NECK_TARGET:.0%}')
    for each in figures['necks']:
        option = (each['scheme'], each['direction'], each['commute'])
        share = each['share']
        lines.append(row(*option, f'{1e3 * each["neck_s"]:.2f}', f'{share:.2%}', verdict(share, -NECK_TARGET)))
    return lines


def frozen_table(results: dict[str, dict]) -> list[str]:
    """A frozen backbone beside a trained one, in detection."""
    lines = []
    for each in results.values():
        lines += lines or header('detector', 'step, ms', 'peak, MiB', 'kept for backward, MiB')
        figures = each['figures']
        for name, figure in figures.items():
            lines.append(row(name, *(f'{figure[key]:.0f}' for key in ('step_ms', 'peak', 'kept'))))
        frozen, trained = figures.values()
        step, peak = (frozen[key] / trained[key] for key in ('step_ms', 'peak'))
        cells = [
            f'{value:.2f}, {verdict(value, -target)} (at most {target})'
            for value, target in ((step, STEP_TARGET), (peak, PEAK_TARGET))
        ]
        lines.append(row('the first : the second', *cells, f'{frozen["kept"] / trained["kept"]:.2f}'))
    return lines


def render(results: dict[str, dict]) -> str:
    """All tables, as far as there are figures."""
    lines = ['; '.join(f'{key} {value}' for key, value in results['environment'].items())]
    if 'tests' in results:
        each = results['tests']
        lines += header('tests run', 'skipped', 'failed', 'seconds')
        counts = (each['tests'] - each['skipped'], each['skipped'], each['failures'] + each['errors'])
        lines.append(row(*counts, f'{each["seconds"]:.0f}'))
    lines += throughput_tables(results)
    if 'neck' in results:
        lines += neck_table(results['neck'])
    lines += frozen_table({name: each for name, each in results.items() if name.startswith('frozen_')})
    feeding = {name.removeprefix('feeding_'): each for name, each in results.items() if name.startswith('feeding_')}
    if feeding:
        lines += header('images/s from', *feeding)
        rates = [each['images_per_s'] for each in feeding.values()]
        for n in dict.fromkeys(n for each in rates for n in each):
            lines.append(row(f'{n} workers', *(f'{each[n]["qbheat"]:.0f}' if n in each else '' for each in rates)))
    if 'study' in results:
        lines += ['', f'Records of the study: {len(results["study"]["records"])}.']
    return '\n'.join(lines)


def insert(text: str, tables: str) -> str:
    """A README with these tables in the place of the last ones.

    Raises:
        ValueError: If it does not say where.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f'The README lacks the lines "{BEGIN}" and "{END}", between which the tables go.')
    return f'{before}{BEGIN}\n{tables}\n{END}{after}'


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='folder of the JSON files; default: work_dirs/gpu_report[_quick]')
    parser.add_argument('--minutes', type=float, default=10.0, help='for all parts together (%(default)s)')
    parser.add_argument('--only', nargs='+', metavar='PART', help='some of the parts')
    parser.add_argument('--data', type=Path, help="Imagenette: studies/imagenette.yaml's first seed, in the time left")
    parser.add_argument('--quick', action='store_true', help='every part at its smallest, on a CPU')
    args = parser.parse_args(argv)
    args.device = 'cpu' if args.quick else 'cuda'
    args.out = args.out or ROOT / 'work_dirs' / ('gpu_report_quick' if args.quick else 'gpu_report')
    if unknown := set(args.only or ()) - set(parts(args)):
        parser.error(f'--only: {", ".join(sorted(unknown))}: there are {", ".join(parts(args))}')
    if not args.quick:
        import torch  # seconds: after the other arguments

        if not torch.cuda.is_available():
            parser.error('there is no GPU that PyTorch can use; --quick tries every part on a CPU')
    return args


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, and make the tables; returns 1 if a part failed or was cut off."""
    args = parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / 'environment.json', environment(args))
    complete = True
    for name, part in parts(args).items():
        if (args.only and name not in args.only) or (args.out / f'{name}.json').is_file():
            continue
        left = deadline - time.monotonic()
        outcome = (
            run(name, part, args, left if args.quick else min(part.seconds, left))
            if left > 5
            else 'no time left; call again'
        )
        complete = complete and outcome.startswith('done')
        print(f'{name}: {outcome}', flush=True)
    files = {name: args.out / f'{name}.json' for name in ('environment', *parts(args))}
    tables = render({name: json.loads(path.read_text()) for name, path in files.items() if path.is_file()})
    print('\n' + tables)
    if not args.quick:
        README.write_text(insert(README.read_text(), tables))
    return 0 if complete else 1


if __name__ == '__main__':
    sys.exit(main())
