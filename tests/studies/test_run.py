"""A study: what it refuses, what it skips, what it reports."""

import fcntl
import json
import os
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

sys.path[:0] = [str(ROOT / 'studies'), str(ROOT / 'tools')]
import report as study_report
import run as reproduce
from run import Study, StudyError

PRETRAIN = 'configs/demo/qbheat_mobile-former-52m_demo.py'
PROBE = 'configs/demo/linear_mobile-former-52m_demo.py'
SPEC = dict(
    data=dict(images='images'),
    seeds=[0, 1],
    pretraining=dict(one=dict(config=PRETRAIN, label='One'), two=dict(config=PRETRAIN, seeds=[0])),
    evaluation=dict(
        linear=dict(config=PROBE, metrics=dict(linear='accuracy/top1')),
        heat=dict(tool='heat_hypothesis', rows=['one'], metrics={'R²': 'r2/trained/derivative'}),
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


def make_study(folder: Path, data: dict | None = None, **changes) -> Study:
    path = folder / 'little.yaml'
    path.write_text(yaml.safe_dump(SPEC | changes, sort_keys=False))
    return Study(path, folder / 'results', folder / 'work_dirs', data)


def write_run(study: Study, stage: reproduce.Stage, metrics: dict, curve=()) -> None:
    record = dict(
        stage=stage.name,
        config=PRETRAIN,
        config_hash=study.config_hash(stage),
        commit='0123456789ab',
        hardware='CPU, 2 cores',
        seconds=90.0,
        metrics=metrics,
        curves={'knn/top1_k20': curve},
    )
    path = study.record(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_the_first_seed_of_everything_comes_first(tmp_path):
    names = [stage.name for stage in make_study(tmp_path).stages]
    assert names == [
        'one/seed0/pretrain',
        'one/seed0/linear',
        'one/seed0/heat',
        'two/seed0/pretrain',
        'two/seed0/linear',
        'one/seed1/pretrain',
        'one/seed1/linear',
        'one/seed1/heat',
    ]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(seeds=[]), 'the field "seeds" has to be a list with at least one entry'),
        (dict(repeats=3), 'unknown field repeats'),
        (dict(pretraining=dict(one=dict(config='configs/none.py'))), 'there is no config "configs/none.py"'),
        (dict(pretraining=dict(one=dict(config=PRETRAIN, epoch=3))), 'pretraining.one has the unknown field epoch'),
        (dict(evaluation=dict(a=dict(tool='magic'))), '"magic" is no tool; there are knn'),
        (dict(evaluation=dict(a=dict(config=PROBE, data='coco'))), '"data" names "coco"'),
        (dict(tables=[dict(title='t', rows=['three'])]), 'the row "three", which is no pre-training'),
    ],
)
def test_a_wrong_study_is_refused(tmp_path, changes, message):
    with pytest.raises(StudyError, match=message.replace('(', r'\(')):
        make_study(tmp_path, **changes)


@pytest.mark.parametrize('content', [b'', b'- a\n- b\n', b'a: [1,', b'\xff\xfe\x00'])
def test_what_is_no_study_is_refused(tmp_path, content):
    path = tmp_path / 'broken.yaml'
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r'broken\.yaml'):
        Study(path, tmp_path, tmp_path)


def test_unknown_names_are_answered_with_the_known(tmp_path):
    with pytest.raises(StudyError, match='No stage is called "three/\\*"; there are:\n  one/seed0/pretrain'):
        make_study(tmp_path).select(['three/*'])
    with pytest.raises(StudyError, match='reads no data called coco, but images'):
        make_study(tmp_path, data=dict(coco='/coco'))


def test_the_schedule_follows_the_epochs(tmp_path):
    study = make_study(
        tmp_path, pretraining=dict(one=dict(config=PRETRAIN, epochs=100)), tables=[dict(title='', rows=[])]
    )
    cfg = study.config(study.stages[0])
    assert cfg.train_cfg.max_epochs == 100
    assert [(each.begin, each.end) for each in cfg.param_scheduler] == [(0, 1), (1, 100)]


def test_epochs_have_to_outlast_the_warm_up(tmp_path):
    study = make_study(
        tmp_path, pretraining=dict(one=dict(config=PRETRAIN, epochs=1)), tables=[dict(title='', rows=[])]
    )
    with pytest.raises(StudyError, match='"epochs: 1" does not exceed the warm-up of 1'):
        study.config(study.stages[0])


def test_the_hash_tells_options_but_not_places(tmp_path):
    def hash_of(data=None, **pretraining):
        study = make_study(
            tmp_path, data, pretraining=dict(one=dict(config=PRETRAIN, **pretraining)), tables=[dict(title='', rows=[])]
        )
        return study.config_hash(study.stages[0])

    assert hash_of() == hash_of(dict(images='/elsewhere/images'))
    assert hash_of() != hash_of(options={'model.neck.scheme': 'exp'})


def test_the_hash_leaves_out_which_stages_there_are_and_how_they_are_shown(tmp_path):
    study = make_study(tmp_path)
    probe = next(stage for stage in study.stages if stage.part == 'linear')
    shown = replace(probe, spec=dict(probe.spec, rows=['one'], metrics={'top-1': 'accuracy/top1'}))
    assert study.config_hash(shown) == study.config_hash(probe)
    assert study.config_hash(replace(probe, spec=dict(probe.spec, cache=True))) != study.config_hash(probe)
    first = replace(study.stages[0], spec=dict(study.stages[0].spec, label='another', seeds=[0]))
    assert study.config_hash(first) == study.config_hash(study.stages[0])


def test_the_report_needs_the_jsons_alone(tmp_path):
    study = make_study(tmp_path)
    figures = {'one': {0: 60.0, 1: 62.0}, 'two': {0: 58.5}}
    for stage in study.stages:
        if stage.part == 'pretrain':
            write_run(study, stage, {}, curve=[(0, 20.0), (10, 40.0)])
        elif stage.part == 'linear':
            write_run(study, stage, {'accuracy/top1': figures[stage.row][stage.seed]})
    report = study_report.write_report(study.spec, study_report.read_runs(study.results / 'runs'), study.results)
    text = report.read_text()
    assert '| One | 2 | 1.5 | 61.0 ± 1.4 | not measured |' in text
    assert '| *One, the paper* |  |  | 65.6 |  |' in text
    assert '| two | 1 | 1.5 | 58.5 | not measured |' in text
    assert '| One - two |  |  | +2.5 | not measured |' in text
    assert '| *One - two, the paper* |  |  | +12.7 |  |' in text
    assert (study.results / 'curves.png').exists()
    for stage in study.stages:
        assert (f'(runs/{study.record(stage).name})' in text) == study.record(stage).exists()


def test_a_column_may_be_scaled_and_is_shown_where_it_concerns_a_row():
    spec = dict(evaluation=dict(detection=dict(rows=['one'], metrics={'AP': ['coco/bbox_mAP', 100]})))
    column = study_report.columns(spec, ['one', 'two'])['AP']
    runs = {('one', 'detection'): {0: dict(metrics={'coco/bbox_mAP': 0.125})}}
    assert study_report.values(runs, 'one', column) == [12.5]
    assert not study_report.columns(spec, ['two'])


@pytest.fixture
def quick_stages(monkeypatch):
    """Stages that take no time; those of ``two`` fail."""

    def commands(study, stage):
        code = 'raise SystemExit("no such luck")' if stage.row == 'two' else 'print("done")'
        yield ['-c', code]

    monkeypatch.setattr(reproduce, 'commands', commands)
    monkeypatch.setattr(
        reproduce, 'export_backbone', lambda folder, target: (target.parent.mkdir(exist_ok=True), target.touch())
    )


def test_a_failed_stage_is_reported_and_the_rest_goes_on(tmp_path, quick_stages, capsys):
    study = make_study(tmp_path)
    assert not reproduce.run(study, study.stages)
    text = capsys.readouterr().out
    assert 'FAILED with exit status 1' in text
    assert 'no such luck' in text
    assert '2 of 8 stages are not finished: two/seed0/pretrain, two/seed0/linear' in text
    assert all(study.record(stage).exists() == (stage.row == 'one') for stage in study.stages)
    assert reproduce.run(study, study.select(['one/*']))  # nothing is done twice
    assert 'started' not in capsys.readouterr().out


def test_what_was_measured_with_another_config_is_left_alone(tmp_path, quick_stages, capsys):
    study = make_study(tmp_path)
    reproduce.run(study, study.select(['one/seed0/pretrain']))
    before = study.record(study.stages[0]).read_bytes()
    changed = make_study(tmp_path, pretraining=SPEC['pretraining'] | dict(one=dict(config=PRETRAIN, epochs=3)))
    assert not reproduce.run(changed, changed.select(['one/seed0/pretrain']))
    assert 'measured with another config; remove' in capsys.readouterr().out
    assert study.record(study.stages[0]).read_bytes() == before


def test_two_calls_take_different_stages(tmp_path, quick_stages, capsys):
    study = make_study(tmp_path)
    folder = study.folder(study.stages[0])
    folder.mkdir(parents=True)
    with (folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not reproduce.run(study, study.select(['one/seed*/pretrain']))
    assert 'one/seed0/pretrain: another process is at it' in capsys.readouterr().out
    assert study.record(study.select(['one/seed1/pretrain'])[0]).exists()


def test_slurm_jobs_wait_for_their_backbones(tmp_path):
    study = make_study(tmp_path)
    lines = list(reproduce.slurm_jobs(study, study.stages, ['little.yaml']))
    script = '\n'.join(lines)
    assert '--dependency=afterok:$job3 -J two/seed0/linear' in script
    assert '--dependency=afterok:$job5 -J one/seed1/heat' in script
    assert script.endswith("--report-only'")
    assert subprocess.run(['bash', '-n'], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize('path', sorted((ROOT / 'studies').glob('*.yaml')), ids=lambda path: path.stem)
def test_every_study_of_the_project_builds(path, tmp_path):
    """Configs, options and models of every stage of the first seed fit together."""
    study = Study(path, tmp_path, tmp_path)
    built = set()
    for stage in study.stages:
        if stage.seed != study.spec['seeds'][0] or 'config' not in stage.spec:
            continue
        cfg = study.config(stage)
        model = json.dumps(cfg.model.to_dict(), sort_keys=True, default=repr)
        if stage.part == 'pretrain' and model not in built:
            built.add(model)
            cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
            MODELS.build(cfg.model)
    for table in study.spec['tables']:
        labels = study_report.columns(study.spec, table['rows'])
        assert set().union(*table.get('paper', {}).values()) <= labels.keys()


@pytest.mark.slow
def test_smoke_study_survives_sigkill(tmp_path):
    """Killed in the middle of its first two stages, it goes on, and ends as the study that was left alone."""
    command = [sys.executable, 'studies/run.py', 'studies/smoke.yaml', '--work-dir', str(tmp_path)]
    command += ['--only', 'qbheat/seed0/pretrain', 'qbheat/seed0/tran-1']

    def call(name, kill_at=None):
        process = subprocess.Popen([*command, '--results', str(tmp_path / name)], cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + 600
        while kill_at and process.poll() is None and not list(tmp_path.glob(kill_at)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        if kill_at:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    assert call('killed', kill_at='smoke/qbheat/seed0/pretrain/epoch_1.pth') == -signal.SIGKILL
    assert call('killed', kill_at='smoke/qbheat/seed0/tran-1/attempt-*.log') == -signal.SIGKILL
    assert call('killed') == 0
    report = tmp_path / 'killed' / 'smoke' / 'README.md'
    text = report.read_text()
    report.unlink()
    assert subprocess.run([*command, '--results', str(tmp_path / 'killed'), '--report-only'], cwd=ROOT).returncode == 0
    assert report.read_text() == text
    record = json.loads((tmp_path / 'killed/smoke/runs/qbheat-seed0-tran-1.json').read_text())
    assert 0 < record['metrics']['accuracy/top1'] <= 100
    assert len(list((tmp_path / 'smoke/qbheat/seed0/pretrain').glob('attempt-*.log'))) == 2
