"""Run a study: pre-trainings x seeds, then probes and detection on each frozen backbone, and a table of it all.

    python studies/run.py studies/smoke.yaml

Call it again to go on: finished stages are skipped, interrupted ones resumed, failed ones tried anew. Two calls at a
time take different stages. Each stage leaves one JSON under results/<study>/runs; table and figures are drawn from
those alone (--report-only), so stages may run on different machines (--only) and their JSONs, and the backbones under
work_dirs/<study>/backbones, be brought together. --slurm prints the study as jobs instead. What a study file holds
is written in studies/README.md.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from report import read_runs, write_report

from qbheat_mm.engine.schedules import epoch_options

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {
    name: ROOT / 'tools' / 'analysis_tools' / file
    for name, file in (
        ('knn', 'knn_eval.py'),
        ('heat_hypothesis', 'heat_hypothesis.py'),
        ('reconstruct', 'reconstruct.py'),
    )
}
STUDY_FIELDS = {
    *('title', 'notes', 'prepare', 'data', 'seeds', 'processes', 'watch', 'pretraining', 'evaluation', 'tables'),
}
STAGE_FIELDS = {'config', 'epochs', 'options', 'data'}
PRETRAINING_FIELDS = STAGE_FIELDS | {'label', 'seeds', 'watch'}
EVALUATION_FIELDS = STAGE_FIELDS | {'metrics', 'tool', 'arguments', 'cache', 'rows'}
# What decides which stages there are and how they are shown, and nothing in any of them.
TABLE_FIELDS = {'label', 'seeds', 'rows', 'metrics'}


class StudyError(ValueError):
    """A study that cannot be run as it is written."""


@dataclass(frozen=True)
class Stage:
    """One run of a tool on one backbone.

    Attributes:
        row: Which pre-training of the study.
        seed: Of everything random in it.
        part: ``pretrain``, or the name of an evaluation.
        spec: Its fields in the study file.
    """

    row: str
    seed: int
    part: str
    spec: dict

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f'{self.row}/seed{self.seed}/{self.part}'

    @property
    def file_name(self) -> str:
        """The same without slashes."""
        return self.name.replace('/', '-')


class Study:
    """A study file, where its results go, and its stages in the order in which they run.

    Args:
        path: The study file.
        results: Folder of the JSONs and the report, which is worth keeping.
        work_dir: Folder of logs, checkpoints and backbones.
        data: Folders of images by name, instead of those in the file.

    Raises:
        StudyError: Naming the field that is wrong.
    """

    def __init__(self, path: Path, results: Path, work_dir: Path, data: dict[str, str] | None = None) -> None:
        self.path = path
        try:
            self.spec = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise StudyError(f'"{path}" is not a readable study file: {error}') from error
        self.results = results / path.stem
        self.work_dir = work_dir / path.stem
        check_study(self.spec, path)
        unknown = sorted((data or {}).keys() - self.spec['data'].keys())
        if unknown:
            raise StudyError(f'"{path}" reads no data called {", ".join(unknown)}, but {", ".join(self.spec["data"])}.')
        self.data = {
            name: folder.format(work_dir=self.work_dir) for name, folder in (self.spec['data'] | (data or {})).items()
        }

    @cached_property
    def stages(self) -> list[Stage]:
        """Every seed's pre-trainings, each followed by its evaluations; the first seed of everything first."""
        return [
            Stage(row, seed, part, spec)
            for seed in self.spec['seeds']
            for row, pretraining in self.spec['pretraining'].items()
            if seed in pretraining.get('seeds', self.spec['seeds'])
            for part, spec in (('pretrain', pretraining), *self.spec['evaluation'].items())
            if row in spec.get('rows', [row])
        ]

    def select(self, patterns: list[str] | None) -> list[Stage]:
        """The stages whose names match a pattern, all without patterns.

        Raises:
            StudyError: If a pattern matches none.
        """
        for pattern in patterns or ():
            if not any(fnmatch(stage.name, pattern) for stage in self.stages):
                names = '\n  '.join(stage.name for stage in self.stages)
                raise StudyError(f'No stage is called "{pattern}"; there are:\n  {names}')
        return [s for s in self.stages if not patterns or any(fnmatch(s.name, pattern) for pattern in patterns)]

    def pretraining(self, stage: Stage) -> Stage:
        """The stage that makes the stage's backbone."""
        return Stage(stage.row, stage.seed, 'pretrain', self.spec['pretraining'][stage.row])

    def record(self, stage: Stage) -> Path:
        """The JSON that the stage leaves."""
        return self.results / 'runs' / f'{stage.file_name}.json'

    def folder(self, stage: Stage) -> Path:
        """Where the stage works."""
        return self.work_dir / stage.name

    def backbone(self, stage: Stage) -> Path:
        """What the stage's pre-training leaves for its evaluations."""
        return self.work_dir / 'backbones' / f'{stage.row}-seed{stage.seed}.pth'

    def data_root(self, stage: Stage) -> str:
        """The stage's images."""
        return self.data[stage.spec.get('data', next(iter(self.data)))]

    def config(self, stage: Stage) -> Config:
        """The stage's config with its options and its seed, without its backbone."""
        os.environ['DATA_ROOT'] = self.data_root(stage)
        if 'config' not in stage.spec:
            return self.config(self.pretraining(stage))
        cfg = Config.fromfile(ROOT / stage.spec['config'])
        if 'epochs' in stage.spec:
            try:
                cfg.merge_from_dict(epoch_options(cfg, stage.spec['epochs']))
            except ValueError as error:
                raise StudyError(f'{stage.name}: {error}') from None
        cfg.merge_from_dict(stage.spec.get('options', {}))
        cfg.randomness = dict(cfg.get('randomness', {}), seed=stage.seed)
        if 'watch' in stage.spec:
            cfg.custom_hooks = [*cfg.custom_hooks, self.watcher(stage)]
        return cfg

    def watcher(self, stage: Stage) -> dict:
        """A ``KnnHook`` for a pre-training, on the study's watched data."""
        probe = Config.fromfile(ROOT / self.spec['watch']['config'])
        probe.merge_from_dict(self.spec['watch'].get('options', {}))
        pipeline = probe.val_dataloader.dataset.pipeline
        bank, queries = (
            dict(loader.dataset, pipeline=pipeline, test_mode=True)
            for loader in (probe.train_dataloader, probe.val_dataloader)
        )
        return dict(type='KnnHook', bank=bank, queries=queries, interval=stage.spec['watch'])

    def config_hash(self, stage: Stage) -> str:
        """A hash of everything that the study says about what the stage does, the same on every machine."""
        spec = {field: value for field, value in stage.spec.items() if field not in TABLE_FIELDS}
        content = json.dumps([self.config(stage).to_dict(), spec], sort_keys=True, default=repr)
        return hashlib.sha256(content.replace(self.data_root(stage), '$DATA_ROOT').encode()).hexdigest()[:16]


def check_study(spec: dict, path: Path) -> None:
    """Refuse a study that names unknown fields or lacks needed ones.

    Raises:
        StudyError: Naming the field and what would do.
    """
    if not isinstance(spec, dict):
        raise StudyError(f'"{path}" holds no fields; studies/README.md says which.')
    for key, kind in (('data', dict), ('seeds', list), ('pretraining', dict), ('evaluation', dict), ('tables', list)):
        if not isinstance(spec.get(key), kind) or not spec[key]:
            raise StudyError(f'"{path}": the field "{key}" has to be a {kind.__name__} with at least one entry.')
    unknown = sorted(spec.keys() - STUDY_FIELDS)
    if unknown:
        raise StudyError(f'"{path}": unknown field {", ".join(unknown)}; there are {", ".join(sorted(STUDY_FIELDS))}.')
    for group, fields in (('pretraining', PRETRAINING_FIELDS), ('evaluation', EVALUATION_FIELDS)):
        for name, stage in spec[group].items():
            where = f'"{path}": {group}.{name}'
            unknown = sorted(stage.keys() - fields)
            if unknown:
                raise StudyError(
                    f'{where} has the unknown field {", ".join(unknown)}; there are {", ".join(sorted(fields))}.'
                )
            if not (ROOT / str(stage.get('config'))).is_file() and stage.get('tool', 'knn') == 'knn':
                raise StudyError(f'{where}: there is no config "{stage.get("config")}" in this project.')
            if stage.get('tool', 'knn') not in TOOLS:
                raise StudyError(f'{where}: "{stage["tool"]}" is no tool; there are {", ".join(TOOLS)}.')
            if stage.get('data', next(iter(spec['data']))) not in spec['data']:
                raise StudyError(f'{where}: "data" names "{stage["data"]}", which is not among the study\'s data.')
    for table in spec['tables']:
        for row in table['rows']:
            if row not in spec['pretraining']:
                raise StudyError(f'"{path}": a table has the row "{row}", which is no pre-training.')


# --- Running ---------------------------------------------------------------------------------------------------------


def commands(study: Study, stage: Stage) -> Iterator[list[str]]:
    """The command lines of a stage; writes the config that they run."""
    folder, backbone = study.folder(stage), study.backbone(stage)
    config = folder / 'config.py'
    cfg = study.config(stage)
    tool = stage.spec.get('tool')
    if stage.part != 'pretrain' and not tool:
        cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': str(backbone)})
    cfg.dump(config)
    arguments = [str(each).format(**study.data) for each in stage.spec.get('arguments', ())]
    if tool == 'reconstruct':
        last = (study.folder(study.pretraining(stage)) / 'last_checkpoint').read_text().strip()
        out = study.results / f'{stage.file_name}.png'
        yield [str(TOOLS[tool]), str(config), last, *arguments, '--out', str(out)]
    elif tool:
        out = folder / f'{tool}.json' if tool == 'knn' else folder
        yield [str(TOOLS[tool]), str(config), str(backbone), *arguments, '--out', str(out)]
    else:
        processes = 1 if stage.spec.get('cache') else study.spec.get('processes', 1)
        train = [str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(folder), '--resume']
        if processes > 1:
            launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
            train = [*launch, *train, '--launcher', 'pytorch']
        if stage.spec.get('cache'):
            train += ['--cache-features', str(folder / 'features')]
        yield [*train, *arguments]


def run_stage(study: Study, stage: Stage) -> bool:
    """Run one stage to its end and write its JSON.

    Returns:
        Whether it is finished now.
    """
    folder = study.folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    # The child inherits the lock: it holds for as long as any process works here, whoever started it.
    with (folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('another process is at it')
            return False
        if study.record(stage).exists():
            return True
        for command in commands(study, stage):
            log = folder / f'attempt-{time.time_ns() // 10**6}.log'
            print(f'started; its log is {log}', flush=True)
            with log.open('w') as file:
                code = subprocess.call(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=dict(os.environ, DATA_ROOT=study.data_root(stage)),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                )
            if code:
                tail = '\n  '.join(log.read_text(errors='replace').splitlines()[-8:])
                print(f'FAILED with exit status {code}; the end of its log:\n  {tail}', flush=True)
                return False
        if stage.part == 'pretrain':
            export_backbone(folder, study.backbone(stage))
        write_record(study, stage)
        shutil.rmtree(folder / 'features', ignore_errors=True)
    return True


def export_backbone(folder: Path, target: Path) -> None:
    """Publish the last checkpoint's backbone in float16, under the name that the study knows."""
    from qbheat_mm.checkpoint import publish

    source = (folder / 'last_checkpoint').read_text().strip()
    publish(source, target, half=True).replace(target)


def seconds_of(folder: Path) -> float:
    """Time spent on a stage over all its attempts: from each log's name to its last line."""
    return sum(log.stat().st_mtime - int(log.stem.split('-')[1]) / 1000 for log in folder.glob('attempt-*.log'))


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a training run by step, from mmengine's scalars; a resumed run's last word counts."""
    curves: dict[str, dict[int, float]] = {}
    for scalars in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in scalars.read_text().splitlines():
            record = json.loads(line)
            for key, value in record.items():
                if '/' in key or key == 'loss':
                    curves.setdefault(key, {})[record.get('step', record.get('iter', 0))] = value
    return {key: sorted(values.items()) for key, values in curves.items()}


def write_record(study: Study, stage: Stage) -> None:
    """The stage's JSON: what was measured, from which config, commit and versions, where, and in which time."""
    from qbheat_mm.checkpoint.atomic import atomic_write

    folder = study.folder(stage)
    curves = curves_of(folder)
    metrics = {key: values[-1][1] for key, values in curves.items()}
    outcome = folder / f'{stage.spec.get("tool")}.json'
    if outcome.exists():
        metrics = flatten(json.loads(outcome.read_text()))
    record = dict(
        study=study.path.stem,
        stage=stage.name,
        config=stage.spec.get('config', study.pretraining(stage).spec['config']),
        config_hash=study.config_hash(stage),
        commit=commit(),
        versions=versions(),
        hardware=hardware(),
        seconds=round(seconds_of(folder), 1),
        metrics=metrics,
        curves=curves,
    )
    atomic_write(study.record(stage), (json.dumps(record, indent=1) + '\n').encode())


def flatten(node: dict, prefix: str = '') -> dict[str, float]:
    """The numbers of a nested report by their paths."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}/')
        elif isinstance(value, (int, float)):
            flat[prefix + key] = value
    return flat


def commit() -> str:
    """The project's commit, marked where the working tree differs from it."""
    done = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or 'unknown'


def versions() -> dict[str, str]:
    """Of everything that computes."""
    import mmcv
    import mmdet
    import mmengine
    import mmpretrain
    import torch

    import qbheat_mm

    modules = (qbheat_mm, torch, mmengine, mmcv, mmdet, mmpretrain)
    return dict(python=sys.version.split()[0]) | {module.__name__: module.__version__ for module in modules}


def hardware() -> str:
    """The GPU, or the CPU's threads."""
    import torch

    if torch.cuda.is_available():
        return f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    return f'CPU, {len(os.sched_getaffinity(0))} cores'


def run(study: Study, stages: list[Stage]) -> bool:
    """Run what is not finished, and go on where something fails.

    Returns:
        Whether all of it is finished.
    """
    unfinished = []
    for stage in stages:
        print(f'{stage.name}: ', end='', flush=True)
        if study.record(stage).exists():
            problem = check_finished(study, stage)
            print(problem or 'finished')
            if not problem:
                continue
        elif stage.part != 'pretrain' and not study.backbone(stage).exists():
            print(f'has no backbone {study.backbone(stage)} (yet)')
        elif run_stage(study, stage):
            print(f'{stage.name}: finished', flush=True)
            continue
        unfinished.append(stage.name)
    if unfinished:
        print(f'{len(unfinished)} of {len(stages)} stages are not finished: {", ".join(unfinished)}')
    return not unfinished


def check_finished(study: Study, stage: Stage) -> str | None:
    """What is wrong with a stage's JSON, if anything."""
    record = json.loads(study.record(stage).read_text())
    if record['config_hash'] != study.config_hash(stage):
        return f'was measured with another config; remove {study.record(stage)} and its work dir to measure it anew'
    return None


def slurm_jobs(study: Study, stages: list[Stage], arguments: list[str]) -> Iterator[str]:
    """The study as shell lines for sbatch: each evaluation waits for its pre-training, the report for all."""
    script = shlex.join(['python', 'studies/run.py', *arguments])
    gpus = study.spec.get('processes', 1)
    yield '#!/usr/bin/env bash\nset -euo pipefail'
    yield f'resources=${{SBATCH_ARGUMENTS:-"--gpus={gpus} --cpus-per-task={8 * gpus}"}}'
    submit = 'sbatch --parsable $resources'
    chosen = {stage.name for stage in stages}
    for number, stage in enumerate(stages):
        before = study.pretraining(stage).name
        wait = ''
        if stage.part != 'pretrain' and before in chosen:
            wait = f' --dependency=afterok:$job{[s.name for s in stages].index(before)}'
        yield f"job{number}=$({submit}{wait} -J {stage.name} --wrap '{script} --only {stage.name}')"
    everything = ':'.join(f'$job{number}' for number in range(len(stages)))
    yield f"{submit} --dependency=afterany:{everything} -J report --wrap '{script} --report-only'"


def prepare(study: Study) -> None:
    """Make the study's data with the command that it names, once."""
    done = study.work_dir / 'prepared'
    if 'prepare' in study.spec and not done.exists():
        command = study.spec['prepare'].format(work_dir=study.work_dir)
        print(f'data: {command}', flush=True)
        done.parent.mkdir(parents=True, exist_ok=True)
        if subprocess.call([sys.executable, *shlex.split(command)], cwd=ROOT):
            raise StudyError(f'"{study.path}": the command in "prepare" failed: {command}')
        done.touch()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='a study file')
    parser.add_argument('--only', nargs='+', metavar='STAGE', help='these stages, e.g. "qbheat/seed0/*"')
    parser.add_argument('--data', nargs='+', default=[], metavar='NAME=FOLDER', help="where the study's data lie")
    parser.add_argument('--results', type=Path, default=ROOT / 'results', help='JSONs and report (%(default)s)')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs', help='all else (%(default)s)')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--list', action='store_true', help='name the stages and which are finished')
    what.add_argument('--report-only', action='store_true', help='draw table and figures from the JSONs there are')
    what.add_argument('--slurm', action='store_true', help='print the jobs instead of running them')
    args = parser.parse_args()
    if any('=' not in pair for pair in args.data):
        parser.error('--data takes NAME=FOLDER')
    return args


def main() -> None:
    """Run, report."""
    args = parse_args()
    MMLogger.get_instance('reproduce', log_level='WARNING')  # no line for each variable that a config reads
    try:
        data = {name: str(Path(folder).resolve()) for name, _, folder in (pair.partition('=') for pair in args.data)}
        study = Study(args.study.resolve(), args.results.resolve(), args.work_dir.resolve(), data)
        stages = study.select(args.only)
        if args.list:
            for stage in stages:
                print(f'{stage.name:<48}{"finished" if study.record(stage).exists() else ""}')
            return
        if args.slurm:
            skip = {'--slurm', '--only', *(args.only or ())}
            print('\n'.join(slurm_jobs(study, stages, [each for each in sys.argv[1:] if each not in skip])))
            return
        finished = True
        if not args.report_only:
            prepare(study)
            finished = run(study, stages)
        report = write_report(study.spec, read_runs(study.results / 'runs'), study.results)
        print(f'wrote {report}')
    except StudyError as error:
        sys.exit(f'reproduce: {error}')
    sys.exit(not finished)


if __name__ == '__main__':
    main()
