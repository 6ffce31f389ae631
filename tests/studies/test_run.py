"""Studies: what is refused, what runs, what is recorded and reported."""

import fcntl
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.models import ROOT
from mmpretrain.registry import MODELS

sys.path.insert(0, str(ROOT / 'studies'))
import report as study_report
import run as study_run
from records import append_record, read_records
from run import FINISHED, Study, StudyError

PRETRAIN = 'configs/demo/qbheat_mobile-former-52m_demo.py'
PROBE = 'configs/demo/linear_mobile-former-52m_demo.py'
ONE = dict(config=PRETRAIN, label='One')
SPEC = dict(
    data=dict(images='images'),
    seeds=[0, 1],
    pretraining=dict(one=ONE, two=dict(config=PRETRAIN, seeds=[0])),
    evaluation=dict(
        linear=dict(config=PROBE, metrics=dict(linear='accuracy/top1')),
        heat=dict(tool='heat_hypothesis', rows=['one'], metrics={'R², %': ['r2/trained/derivative', 100]}),
    ),
    tables=[
        dict(
            title='Both',
            rows=['one', 'two'],
            differences=[['one', 'two']],
            paper={'one': dict(linear=65.6), 'one - two': dict(linear='+12.7')},
        )
    ],
)
STAGES = [
    *('one/seed0/pretrain', 'one/seed0/linear', 'one/seed0/heat', 'two/seed0/pretrain', 'two/seed0/linear'),
    *('one/seed1/pretrain', 'one/seed1/linear', 'one/seed1/heat'),
]


def make_study(folder: Path, data: dict | None = None, one: dict = ONE, content=None, **changes) -> Study:
    path = folder / 'little.yaml'
    spec = SPEC | dict(pretraining=SPEC['pretraining'] | dict(one=one)) | changes
    path.write_bytes(yaml.safe_dump(spec, sort_keys=False).encode() if content is None else content)
    return Study(path, folder / 'results', folder / 'work_dirs', data)


def stage_of(study: Study, name: str = STAGES[0]) -> study_run.Stage:
    (stage,) = study.select([name])
    return stage


def test_the_first_seed_of_everything_comes_first(tmp_path):
    assert [stage.name for stage in make_study(tmp_path).stages] == STAGES


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(seeds=[]), 'the field "seeds" has to be of type list, not empty'),
        (dict(repeats=3), 'unknown field repeats; there are data, evaluation'),
        (dict(one=dict(config='configs/none.py')), 'pretraining.one: "config" names "configs/none.py"; there are'),
        (dict(one=dict(config=PRETRAIN, epoch=3)), 'pretraining.one has the unknown field epoch'),
        (dict(one=dict(config=PRETRAIN, epochs='3')), 'pretraining.one: the field "epochs" has to be of type int'),
        (dict(evaluation=dict(a=dict(tool='magic'))), '"tool" names "magic"; there are knn'),
        (dict(evaluation=dict(a=dict(tool='knn'))), '"config" has to be of type str, not empty'),
        (dict(evaluation=dict(a=dict(config=PROBE, data='coco'))), '"data" names "coco"; there are images'),
        (dict(tables=[dict(title='t', rows=['three'])]), 'a table: "rows" names "three"; there are one, two'),
        (dict(content=b''), 'holds no fields'),
        (dict(content=b'- a\n- b\n'), 'holds no fields'),
        (dict(content=b'a: [1,'), 'is not a readable study file'),
        (dict(content=b'\xff\xfe\x00'), 'is not a readable study file'),
    ],
)
def test_a_wrong_study_is_refused(tmp_path, changes, message):
    with pytest.raises(StudyError, match=r'little\.yaml.*' + message):
        make_study(tmp_path, **changes)


def test_unknown_names_are_answered_with_the_known(tmp_path):
    with pytest.raises(StudyError, match='No stage is called "three/\\*"; there are:\n  one/seed0/pretrain'):
        make_study(tmp_path).select(['three/*'])
    with pytest.raises(StudyError, match='reads no data called coco, but images'):
        make_study(tmp_path, data=dict(coco='/coco'))


def test_the_schedule_follows_the_epochs_which_have_to_outlast_the_warm_up(tmp_path):
    cfg = stage_of(make_study(tmp_path, one=dict(ONE, epochs=100))).config()
    assert cfg.train_cfg.max_epochs == 100
    assert [(each.begin, each.end) for each in cfg.param_scheduler] == [(0, 1), (1, 100)]
    with pytest.raises(StudyError, match='1 epochs do not exceed the warm-up of 1'):
        stage_of(make_study(tmp_path, one=dict(ONE, epochs=1))).config()


def test_the_hash_depends_on_options_and_pretraining_but_not_on_places_and_display(tmp_path):
    first, probe = make_study(tmp_path).stages[:2]
    moved = make_study(tmp_path, dict(images='/elsewhere/images'))
    assert stage_of(moved).config_hash == first.config_hash
    changed = make_study(tmp_path, one=dict(ONE, options={'model.neck.scheme': 'exp'}))
    assert stage_of(changed).config_hash != first.config_hash
    assert stage_of(changed, probe.name).config_hash != probe.config_hash
    for stage, display in ((probe, dict(rows=['one'], metrics={'1': 'a'})), (first, dict(label='another', seeds=[0]))):
        assert replace(stage, spec=stage.spec | display).config_hash == stage.config_hash
    assert replace(probe, spec=dict(probe.spec, cache=True)).config_hash != probe.config_hash


def append_many(path, first):
    for i in range(first, first + 20):
        append_record(path, dict(stage=f'a/seed{i}/pretrain', text='x' * 20000))


def test_records_survive_concurrent_writers_interrupted_copies_and_concatenation(tmp_path):
    path, other = tmp_path / 'runs.jsonl', tmp_path / 'other.jsonl'
    assert read_records(path) == {}
    with multiprocessing.get_context('fork').Pool(3) as pool:
        pool.starmap(append_many, [(path, 0), (path, 20), (path, 40)], chunksize=1)
    assert len(read_records(path)) == len(path.read_bytes().splitlines()) == 60
    append_record(other, dict(stage='a/seed0/pretrain', text='later'))
    path.write_bytes(path.read_bytes() + other.read_bytes() + b'{"stage": "a/seed1/pre')  # an interrupted copy
    append_record(path, dict(stage='b/seed0/pretrain'))
    with pytest.warns(UserWarning, match=r'runs\.jsonl:62 is not a record and is ignored'):
        records = read_records(path)
    assert len(records) == 61
    assert records['a/seed0/pretrain']['text'] == 'later'


def write_run(study: Study, name: str, metrics: dict, curve=(), version: str = '0.1.0') -> None:
    record = dict(stage=name, config=PRETRAIN, commit='0123456789ab', versions=dict(qbheat_mm=version))
    record |= dict(hardware='CPU', seconds=90.0, metrics=metrics, curves={'knn/top1_k20': curve})
    append_record(study.runs, record)


def test_the_report_needs_the_records_alone(tmp_path):
    study = make_study(tmp_path)
    figures = {'one/seed0': 60.0, 'one/seed1': 62.0, 'two/seed0': 58.5}
    for name, figure in figures.items():
        write_run(study, f'{name}/pretrain', {}, curve=[(0, 20.0), (10, 40.0)])
        write_run(study, f'{name}/linear', {'accuracy/top1': figure}, version=f'0.{"two" in name:d}.0')
    text = study_report.write_report(study.spec, read_records(study.runs), study.results).read_text()
    assert '|  | qbheat_mm | seeds | pre-training, minutes | linear |\n' in text
    assert '| One | 0.0.0, 0.1.0 | 2 | 1.5 | 61.0 ± 1.4 |\n' in text
    assert '| *One, the paper* |  |  |  | 65.6 |\n' in text
    assert '| two | 0.1.0 | 1 | 1.5 | 58.5 |\n' in text
    assert '| One - two | 0.0.0, 0.1.0 |  |  | +2.5 |\n' in text
    assert '| *One - two, the paper* |  |  |  | +12.7 |\n' in text
    assert 'Not measured: R², %.' in text
    assert (study.results / 'curves.png').exists()
    for stage in study.stages:
        assert (f'| {stage.name} | `{Path(PRETRAIN).name}` | 90 | CPU | 0.' in text) == (stage.part != 'heat')
    write_run(study, 'one/seed0/heat', {'r2/trained/derivative': 0.25})
    records = {name: each for name, each in read_records(study.runs).items() if name.startswith('one')}
    text = study_report.write_report(study.spec, records, study.results).read_text()
    assert '| One | 0.0.0, 0.1.0 | 2 | 1.5 | 61.0 ± 1.4 | 25.0 |\n' in text
    assert 'Not measured: two.' in text
    assert 'One - two' not in text
    assert list(study_report.columns(study.spec, ['two'])) == ['linear']


@pytest.fixture
def quick_stages(monkeypatch):
    """Stages that take no time; those of ``two`` fail."""
    failing, done = 'raise SystemExit("no such luck")', 'print("done")'
    monkeypatch.setattr(study_run, 'command', lambda stage, folder: ['-c', failing if stage.row == 'two' else done])
    monkeypatch.setattr(
        study_run, 'export_backbone', lambda folder, target: (target.parent.mkdir(exist_ok=True), target.touch())
    )


def test_a_failed_stage_is_reported_and_the_rest_goes_on(tmp_path, quick_stages, capsys):
    study = make_study(tmp_path)
    assert not study_run.run(study.stages)
    text = capsys.readouterr().out
    assert 'FAILED with exit status 1' in text
    assert 'no such luck' in text
    assert f'needs {stage_of(study, "two/seed0/linear").backbone}, which does not exist (yet)' in text
    assert '2 of 8 stages are not finished: two/seed0/pretrain, two/seed0/linear' in text
    assert [stage.state() for stage in study.stages] == [FINISHED if 'one' in name else None for name in STAGES]
    assert study_run.run(study.select(['one/*']))  # nothing is done twice
    assert 'started' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('version', 'one', 'reason'),
    [
        ('0.1.4', dict(ONE, epochs=3), 'measured with another config'),
        ('0.2.0.dev0', ONE, f'measured with qbheat_mm 0.1.3, commit [0-9a-z-]+, {PRETRAIN}'),
    ],
)
def test_other_versions_and_configs_are_named_kept_and_redone_on_demand(
    tmp_path, quick_stages, capsys, monkeypatch, version, one, reason
):
    def run(study, patterns='one/seed0/*', redo=False, version=version):
        for name in ('run.__version__', 'qbheat_mm.__version__'):
            monkeypatch.setattr(name, version)
        return study_run.run(study.select([patterns]), redo), capsys.readouterr().out

    study = make_study(tmp_path)
    assert run(study, version='0.1.3')[0]
    before, study = study.runs.read_bytes(), make_study(tmp_path, one=one)
    finished, text = run(study)
    assert not finished
    assert re.search(f'{STAGES[0]}: {reason}; kept in the tables, --redo measures it anew', text)
    assert '3 of 3 stages are not finished' in text
    finished, text = run(study, STAGES[1], redo=True)  # the backbone is still the former one
    assert not finished
    assert re.search(f'waits for its pre-training, which was {reason}', text)
    assert study.runs.read_bytes() == before
    assert run(study, redo=True)[0]
    assert 'started' not in run(study, redo=True)[1]  # nothing is done twice
    assert study.runs.read_bytes().startswith(before)
    assert len(list((study.work_dir / STAGES[0]).iterdir())) == 2  # checkpoints of 0.1.3 were not resumed from


def test_two_calls_take_different_stages(tmp_path, quick_stages, capsys):
    study = make_study(tmp_path)
    folder = study.stages[0].folder
    folder.mkdir(parents=True)
    with (folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not study_run.run(study.select(['one/seed*/pretrain']))
    assert 'one/seed0/pretrain: another process runs it' in capsys.readouterr().out
    assert stage_of(study, 'one/seed1/pretrain').state() == FINISHED


def test_slurm_jobs_wait_for_their_backbones(tmp_path):
    study = make_study(tmp_path)
    script = '\n'.join(study_run.slurm_jobs(study, study.stages, ['little.yaml']))
    assert '--dependency=afterok:$job3 -J two/seed0/linear' in script
    assert '--dependency=afterok:$job5 -J one/seed1/heat' in script
    assert script.endswith("--report-only'")
    assert subprocess.run(['bash', '-n'], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize('path', sorted((ROOT / 'studies').glob('*.yaml')), ids=lambda path: path.stem)
def test_every_study_of_the_project_builds(path, tmp_path):
    """Configs, options and models of every stage of the first seed fit together."""
    study = Study(path, ROOT / 'results', tmp_path)
    models = {}
    for stage in study.stages:
        if stage.seed == study.spec['seeds'][0]:
            cfg = stage.config()
            if not stage.pretraining:
                models[str(cfg.model)] = dict(data_preprocessor=cfg.get('data_preprocessor')) | cfg.model.to_dict()
    for model in models.values():
        MODELS.build(model)
    for table in study.spec['tables']:
        labels = study_report.columns(study.spec, table['rows'])
        assert set().union(*table.get('paper', {}).values()) <= labels.keys()


@pytest.mark.parametrize('folder', sorted((ROOT / 'results').glob('imagenette*')), ids=lambda folder: folder.name)
def test_committed_results_are_those_of_their_version(folder, tmp_path):
    """The report is made from the records, and records of 0.1.0 do not pass for the present version's."""
    study = Study(ROOT / 'studies' / f'{folder.name}.yaml', ROOT / 'results', tmp_path)
    records = read_records(study.runs)
    assert records.keys() <= {stage.name for stage in study.stages}
    for stage in study.stages:
        if stage.name in records and records[stage.name]['versions']['qbheat_mm'] == '0.1.0':
            assert stage.state().startswith('measured with qbheat_mm 0.1.0, commit ')
    shutil.copytree(folder, tmp_path / 'copy')
    report = study_report.write_report(study.spec, records, tmp_path / 'copy')
    assert report.read_text() == (folder / 'README.md').read_text()


@pytest.mark.slow
def test_smoke_study_survives_sigkill(tmp_path):
    """Killed in the middle of its first two stages, it goes on, and ends as the study that was left alone."""
    command = [sys.executable, 'studies/run.py', 'studies/smoke.yaml', '--work-dir', str(tmp_path)]
    command += ['--only', 'qbheat/seed0/pretrain', 'qbheat/seed0/tran-1', '--results', str(tmp_path / 'killed')]

    def call(kill_at=None):
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + 600
        while kill_at and process.poll() is None and not list(tmp_path.glob(kill_at)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        if kill_at:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    assert call(kill_at='smoke/qbheat/seed0/pretrain/*/epoch_1.pth') == -signal.SIGKILL
    assert call(kill_at='smoke/qbheat/seed0/tran-1/*/attempt-*.log') == -signal.SIGKILL
    assert call() == 0
    report = tmp_path / 'killed' / 'smoke' / 'README.md'
    text = report.read_text()
    report.unlink()
    assert subprocess.run([*command, '--report-only'], cwd=ROOT).returncode == 0
    assert report.read_text() == text
    record = read_records(report.with_name('runs.jsonl'))['qbheat/seed0/tran-1']
    assert 0 < record['metrics']['accuracy/top1'] <= 100
    assert len(list((tmp_path / 'smoke/qbheat/seed0/pretrain').glob('*/attempt-*.log'))) == 2
