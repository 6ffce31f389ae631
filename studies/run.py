"""Run a study: pre-trainings x seeds, then probes and detection on each frozen backbone, and a report.

    python studies/run.py studies/smoke.yaml

Call it again to resume: finished stages are skipped, interrupted stages continue, failed stages are retried. Concurrent
calls run different stages. The report is made from the records in results/<study>/runs.jsonl alone (--report-only).
studies/README.md describes study files, and how to use several machines.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def named_folder(text: str) -> tuple[str, str]:
    """Parse NAME=FOLDER."""
    name, found, folder = text.partition('=')
    if not found:
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=FOLDER.')
    return name, str(Path(folder).resolve())


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='study file')
    parser.add_argument(
        '--only', nargs='+', default=['*'], metavar='STAGE', help='run these stages, e.g. "qbheat/seed0/*"'
    )
    parser.add_argument('--redo', action='store_true', help='rerun stages measured with another version or config')
    parser.add_argument('--data', nargs='+', default=[], metavar='NAME=FOLDER', type=named_folder, help='image folders')
    parser.add_argument('--results', type=Path, default=ROOT / 'results', help='records and report (%(default)s)')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs', help='all other files (%(default)s)')
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--list', action='store_true', help='list the stages and their states')
    mode.add_argument('--report-only', action='store_true', help='make tables and figures from the records')
    mode.add_argument('--slurm', action='store_true', help='print Slurm jobs instead of running the stages')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # before the imports below, which take seconds

import torch
import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from records import append_record, read_records
from report import write_report

from qbheat_mm.checkpoint import publish
from qbheat_mm.engine.schedules import epoch_options
from qbheat_mm.text import join_names
from qbheat_mm.version import __version__

CONFIGS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob('configs/*/*.py'))]
TOOLS = dict(knn='knn_eval.py', heat_hypothesis='heat_hypothesis.py', reconstruct='reconstruct.py')
REQUIRED = dict(data=dict, seeds=list, pretraining=dict, evaluation=dict, tables=list)
STUDY = REQUIRED | dict(title=str, notes=str, prepare=str, processes=int, watch=dict)
STAGE = dict(config=str, epochs=int, options=dict, data=str)
PRETRAINING = STAGE | dict(label=str, seeds=list, watch=int)
EVALUATION = STAGE | dict(metrics=dict, tool=str, arguments=list, cache=bool, rows=list)
TABLE = dict(title=str, rows=list, differences=list, paper=dict)
DISPLAY = {'label', 'seeds', 'rows', 'metrics'}  # these fields select and show stages, but do not change them
FINISHED = 'finished'


class StudyError(ValueError):
    """A study that cannot be run as it is written; the message names the field and the remedy."""


def leaves(value: object) -> list:
    """The entries of nested lists."""
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


def check_fields(node: object, where: str, fields: dict[str, type], required: Iterable[str], names: dict) -> None:
    """Check that a part of a study has the required and no unknown fields, of the right types, with known names."""
    if not isinstance(node, dict):
        raise StudyError(f'{where} holds no fields; studies/README.md lists them.')
    if unknown := sorted(str(field) for field in node.keys() - fields.keys()):
        raise StudyError(f'{where} has the unknown field {", ".join(unknown)}; there are {", ".join(sorted(fields))}.')
    for field in (*required, *node):
        value = node.get(field)
        if not isinstance(value, fields[field]) or (field in required and not value):
            kind = fields[field].__name__ + ', not empty' * (field in required)
            raise StudyError(f'{where}: the field "{field}" has to be of type {kind}.')
        for name in leaves(value) if field in names else ():
            if name not in list(names[field]):
                raise StudyError(f'{where}: "{field}" names "{name}"; there are {join_names(names[field])}.')


def check_study(spec: object, where: str) -> None:
    """Check all fields of a study."""
    check_fields(spec, where, STUDY, REQUIRED, {})
    names = dict(config=CONFIGS, tool=TOOLS, data=spec['data'], rows=spec['pretraining'])
    names['differences'] = names['rows']
    parts = [(f'pretraining.{name}', stage, PRETRAINING) for name, stage in spec['pretraining'].items()]
    parts += [(f'evaluation.{name}', stage, EVALUATION) for name, stage in spec['evaluation'].items()]
    for name, stage, fields in parts:
        no_config = isinstance(stage, dict) and stage.get('tool', 'knn') != 'knn'
        check_fields(stage, f'{where}: {name}', fields, () if no_config else ['config'], names)
    for table in spec['tables']:
        check_fields(table, f'{where}: a table', TABLE, ['title', 'rows'], names)


class Study:
    """A study file, its folders in ``results`` and ``work_dir``, and its stages in the order in which they run."""

    def __init__(self, path: Path, results: Path, work_dir: Path, data: dict[str, str] | None = None) -> None:
        try:
            self.spec = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise StudyError(f'"{path}" is not a readable study file: {error}') from error
        check_study(self.spec, f'"{path}"')
        folders = self.spec['data'] | (data or {})
        if unknown := sorted(folders.keys() - self.spec['data'].keys()):
            raise StudyError(f'"{path}" reads no data called {", ".join(unknown)}, but {", ".join(self.spec["data"])}.')
        self.results, self.work_dir = results / path.stem, work_dir / path.stem
        self.runs = self.results / 'runs.jsonl'
        self.data = {name: folder.format(work_dir=self.work_dir) for name, folder in folders.items()}
        self.stages: list[Stage] = []
        for seed in self.spec['seeds']:
            for row, spec in self.spec['pretraining'].items():
                if seed in spec.get('seeds', self.spec['seeds']):
                    pretraining = Stage(self, row, seed, 'pretrain', spec)
                    self.stages.append(pretraining)
                    for part, evaluation in self.spec['evaluation'].items():
                        if row in evaluation.get('rows', [row]):
                            self.stages.append(Stage(self, row, seed, part, evaluation, pretraining))

    def select(self, patterns: list[str]) -> list[Stage]:
        """The stages whose names match any of the patterns."""
        names = [stage.name for stage in self.stages]
        if unknown := [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]:
            raise StudyError('\n  '.join([f'No stage is called "{unknown[0]}"; there are:', *names]))
        return [stage for stage in self.stages if any(fnmatch.fnmatch(stage.name, each) for each in patterns)]


@dataclass(frozen=True)
class Stage:
    """One run of a tool on one backbone."""

    study: Study
    row: str  # name of the pre-training
    seed: int
    part: str  # 'pretrain', or the name of an evaluation
    spec: dict  # its fields in the study file
    pretraining: Stage | None = None  # that trains the backbone of an evaluation

    @property
    def name(self) -> str:
        """The name for ``--only``."""
        return f'{self.row}/seed{self.seed}/{self.part}'

    @property
    def data_root(self) -> str:
        """Folder of the images."""
        return self.study.data[self.spec.get('data', next(iter(self.study.data)))]

    @property
    def folder(self) -> Path:
        """Work folder with the present config; so a stage never resumes from checkpoints of another config."""
        return self.study.work_dir / self.name / self.config_hash

    @property
    def backbone(self) -> Path:
        """The backbone that the pre-training exports."""
        return self.study.work_dir / 'backbones' / f'{self.row}-seed{self.seed}.pth'

    @property
    def source(self) -> Path:
        """The file that an evaluation cannot start without: the backbone, or the name of the whole checkpoint."""
        whole = self.spec.get('tool') == 'reconstruct'
        return self.pretraining.folder / 'last_checkpoint' if whole else self.backbone

    def config(self) -> Config:
        """The config with options and seed, but without the backbone."""
        if 'config' not in self.spec:
            return self.pretraining.config()
        os.environ['DATA_ROOT'] = self.data_root
        cfg = Config.fromfile(ROOT / self.spec['config'])
        if 'epochs' in self.spec:
            try:
                cfg.merge_from_dict(epoch_options(cfg, self.spec['epochs']))
            except ValueError as error:
                raise StudyError(f'{self.name}: {error}') from None
        cfg.merge_from_dict(self.spec.get('options', {}))
        cfg.randomness = dict(cfg.get('randomness', {}), seed=self.seed)
        if 'watch' in self.spec:
            watch = self.study.spec['watch']
            probe = Config.fromfile(ROOT / watch['config'])
            probe.merge_from_dict(watch.get('options', {}))
            bank, queries = (
                dict(loader.dataset, pipeline=probe.val_dataloader.dataset.pipeline, test_mode=True)
                for loader in (probe.train_dataloader, probe.val_dataloader)
            )
            cfg.default_hooks.knn = dict(type='KnnHook', bank=bank, queries=queries, interval=self.spec['watch'])
        return cfg

    @cached_property
    def config_hash(self) -> str:
        """Hash of everything that determines the result, the pre-training included; the same on every machine."""
        spec = {field: value for field, value in self.spec.items() if field not in DISPLAY}
        config = self.config().to_dict() if 'config' in self.spec else {}
        before = self.pretraining.config_hash if self.pretraining else series(__version__)
        content = json.dumps([before, spec, config], sort_keys=True, default=repr)
        return hashlib.sha256(content.replace(f'"{self.data_root}', '"$DATA_ROOT').encode()).hexdigest()[:16]

    def state(self) -> str | None:
        """None without a record, ``FINISHED``, or why the record is not of the present version and config."""
        record = read_records(self.study.runs).get(self.name)
        if record is None:
            return None
        version = record['versions']['qbheat_mm']
        if series(version) != series(__version__):
            return f'measured with qbheat_mm {version}, commit {record["commit"]}, {record["config"]}'
        return FINISHED if record['config_hash'] == self.config_hash else 'measured with another config'


def series(version: str) -> str:
    """Major and minor version, within which results are comparable."""
    return '.'.join(version.split('.')[:2])


def run(stages: list[Stage], redo: bool = False) -> bool:
    """Run what is not finished, with ``redo`` also what was measured otherwise; return whether all is finished now."""
    unfinished = []
    for stage in stages:
        print(f'{stage.name}: ', end='', flush=True)
        state, before = stage.state(), stage.pretraining and stage.pretraining.state()
        if state == FINISHED:
            print(state)
            continue
        if state and not redo:
            print(f'{state}; kept in the tables, --redo measures it anew')
        elif before not in (None, FINISHED):
            print(f'waits for its pre-training, which was {before}; --redo measures that anew')
        elif stage.pretraining and not stage.source.exists():
            print(f'needs {stage.source}, which does not exist (yet)')
        elif run_stage(stage):
            print(f'{stage.name}: finished', flush=True)
            continue
        unfinished.append(stage.name)
    if unfinished:
        print(f'{len(unfinished)} of {len(stages)} stages are not finished: {", ".join(unfinished)}')
    return not unfinished


def run_stage(stage: Stage) -> bool:
    """Run one stage to its end and append its record; return whether it is finished now."""
    folder = stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    # The child inherits the lock, which holds until the last process of the stage has ended.
    with (folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('another process runs it')
            return False
        if stage.state() == FINISHED:
            return True
        log = folder / f'attempt-{time.time_ns() // 10**6}.log'
        print(f'started; its log is {log}', flush=True)
        call = [sys.executable, *command(stage, folder)]
        env = dict(os.environ, DATA_ROOT=stage.data_root)
        with log.open('w') as file:
            streams = dict(stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()])
            code = subprocess.call(call, cwd=ROOT, env=env, **streams)
        if code:
            tail = '\n  '.join(log.read_text(errors='replace').splitlines()[-8:])
            print(f'FAILED with exit status {code}; the end of its log:\n  {tail}', flush=True)
            return False
        if not stage.pretraining:
            export_backbone(folder, stage.backbone)
        append_record(stage.study.runs, make_record(stage, folder))
        shutil.rmtree(folder / 'features', ignore_errors=True)
    return True


def command(stage: Stage, folder: Path) -> list[str]:
    """The command line of a stage; writes the config file that it names."""
    config, study, tool = str(folder / 'config.py'), stage.study, stage.spec.get('tool')
    cfg = stage.config()
    if stage.pretraining and not tool:
        cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': str(stage.backbone)})
    cfg.dump(config)
    arguments = [str(each).format(**study.data) for each in stage.spec.get('arguments', ())]
    if tool:
        source, out = str(stage.source), folder / 'knn.json' if tool == 'knn' else folder
        if tool == 'reconstruct':
            source, out = stage.source.read_text().strip(), study.results / f'{stage.name.replace("/", "-")}.png'
        return [str(ROOT / 'tools' / 'analysis_tools' / TOOLS[tool]), config, source, *arguments, '--out', str(out)]
    train = [str(ROOT / 'tools' / 'train.py'), config, '--work-dir', str(folder), '--resume', *arguments]
    if stage.spec.get('cache'):
        return [*train, '--cache-features', str(folder / 'features')]
    if (processes := study.spec.get('processes', 1)) > 1:
        launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
        return [*launch, *train, '--launcher', 'pytorch']
    return train


def export_backbone(folder: Path, target: Path) -> None:
    """Export the backbone of the last checkpoint in float16."""
    source = (folder / 'last_checkpoint').read_text().strip()
    publish(source, target, half=True).replace(target)


def make_record(stage: Stage, folder: Path) -> dict:
    """The record of a finished stage: results, and what they depend on."""
    curves = read_curves(folder)
    metrics = {key: curve[-1][1] for key, curve in curves.items()}
    outcome = folder / f'{stage.spec.get("tool")}.json'
    if outcome.exists():
        metrics = flatten(json.loads(outcome.read_text()))
    describe = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    modules = ('qbheat_mm', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain')
    hardware = f'CPU, {len(os.sched_getaffinity(0))} cores'
    if torch.cuda.is_available():
        hardware = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    # All attempts count, each from the time in its log's name to its last line.
    seconds = sum(log.stat().st_mtime - int(log.stem.split('-')[1]) / 1000 for log in folder.glob('attempt-*.log'))
    return dict(
        study=stage.study.work_dir.name,
        stage=stage.name,
        config=stage.spec.get('config') or stage.pretraining.spec['config'],
        config_hash=stage.config_hash,
        commit=commit or 'unknown',
        versions=dict(python=sys.version.split()[0]) | {name: import_module(name).__version__ for name in modules},
        hardware=hardware,
        seconds=round(seconds, 1),
        metrics=metrics,
        curves=curves,
    )


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metrics of a training run by step, from mmengine's scalars; a resumed run replaces values of earlier attempts."""
    curves: dict[str, dict[int, float]] = {}
    for scalars in sorted(folder.glob('*/vis_data/scalars.json')):
        for record in map(json.loads, scalars.read_text().splitlines()):
            for key, value in record.items():
                if '/' in key or key == 'loss':
                    curves.setdefault(key, {})[record.get('step', record.get('iter', 0))] = value
    return {key: sorted(values.items()) for key, values in curves.items()}


def flatten(node: object, path: str = '') -> dict[str, float]:
    """The numbers of a nested report by their paths."""
    if isinstance(node, dict):
        return {name: leaf for key, each in node.items() for name, leaf in flatten(each, f'{path}/{key}').items()}
    return {path.removeprefix('/'): node} if isinstance(node, (int, float)) else {}


def prepare(study: Study) -> None:
    """Run the command that makes the study's data, once."""
    done = study.work_dir / 'prepared'
    if 'prepare' in study.spec and not done.exists():
        line = study.spec['prepare'].format(work_dir=study.work_dir)
        print(f'data: {line}', flush=True)
        done.parent.mkdir(parents=True, exist_ok=True)
        if subprocess.call([sys.executable, *shlex.split(line)], cwd=ROOT):
            raise StudyError(f'the command in "prepare" failed: {line}')
        done.touch()


def slurm_jobs(study: Study, stages: list[Stage], arguments: list[str]) -> Iterator[str]:
    """Shell lines for sbatch: each evaluation waits for its pre-training, the report for all stages."""
    script = shlex.join(['python', 'studies/run.py', *arguments])
    gpus = study.spec.get('processes', 1)
    yield '#!/usr/bin/env bash\nset -euo pipefail'
    yield f'resources=${{SBATCH_ARGUMENTS:-"--gpus={gpus} --cpus-per-task={8 * gpus}"}}'
    submit = 'sbatch --parsable $resources'
    jobs = {stage.name: f'job{number}' for number, stage in enumerate(stages)}
    for stage in stages:
        before = stage.pretraining and jobs.get(stage.pretraining.name)
        wait = f' --dependency=afterok:${before}' if before else ''
        yield f"{jobs[stage.name]}=$({submit}{wait} -J {stage.name} --wrap '{script} --only {stage.name}')"
    everything = ':'.join(f'${job}' for job in jobs.values())
    yield f"{submit} --dependency=afterany:{everything} -J report --wrap '{script} --report-only'"


def main() -> None:
    """Run the study and write its report."""
    args = parse_args()
    MMLogger.get_instance('study', log_level='WARNING')  # mmengine logs each variable that a config reads
    finished = True
    try:
        study = Study(args.study.resolve(), args.results.resolve(), args.work_dir.resolve(), dict(args.data))
        stages = study.select(args.only)
        if args.list:
            for stage in stages:
                print(f'{stage.name:<48}{stage.state() or ""}')
        elif args.slurm:
            skip = {'--slurm', '--only', *args.only}
            print('\n'.join(slurm_jobs(study, stages, [each for each in sys.argv[1:] if each not in skip])))
        else:
            if not args.report_only:
                prepare(study)
                finished = run(stages, args.redo)
            print(f'wrote {write_report(study.spec, read_records(study.runs), study.results)}')
    except StudyError as error:
        sys.exit(f'error: {error}')
    sys.exit(not finished)


if __name__ == '__main__':
    main()
