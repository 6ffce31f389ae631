import json
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.models import frozen_classifier_config, qbheat_config, write_images
from helpers.runs import build_runner, image_loader, run_config
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from qbheat_mm.checkpoint import read_checkpoint
from qbheat_mm.engine.hooks import InvalidLossHook, invalid_loss_hook


def test_a_run_skips_broken_images_and_names_them(tmp_path):
    write_images(tmp_path / 'images', 7)
    (tmp_path / 'images' / 'broken.jpg').write_text('no image')
    build_runner(tmp_path, tmp_path / 'images').train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert '1 of 8 images could not be read and were skipped' in log
    assert 'broken.jpg' in log


def test_broken_images_of_wrapped_folders_are_named_too(tmp_path):
    for name in ('a', 'b'):
        write_images(tmp_path / name, 3)
        (tmp_path / name / f'broken_{name}.jpg').write_text('no image')
    loaders = [image_loader(tmp_path / name) for name in ('a', 'b')]
    wrapped = dict(type='RepeatDataset', times=2, dataset=loaders[1]['dataset'])
    loader = dict(loaders[0], dataset=dict(type='ConcatDataset', datasets=[loaders[0]['dataset'], wrapped]))
    hooks = [dict(type='SkippedImagesHook')]
    Runner.from_cfg(run_config(tmp_path / 'work', tmp_path, train_dataloader=loader, custom_hooks=hooks)).train()
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert re.search(r'2 of 8 images could not be read and were skipped: .*broken_a\.jpg, .*broken_b\.jpg', log)


def test_a_loss_that_is_not_a_number_stops_the_run_before_its_checkpoint(images, tmp_path):
    runner = build_runner(tmp_path, images)
    with torch.no_grad():
        runner.model.neck.generator_x.fill_(float('nan'))
    with pytest.raises(
        FloatingPointError, match=r'The loss or its gradient is not finite at iteration 1 \(epoch 1.*none yet'
    ):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


def break_after(runner: Runner, iteration: int, value: float, *names: str) -> None:
    """Let that iteration's gradient of A overflow, or of other parameters, behind a loss that is finite."""
    for name in names or ('neck.generator_x',):
        parameter = runner.model.get_parameter(name)
        parameter.register_hook(lambda grad: torch.full_like(grad, value) if runner.iter + 1 == iteration else grad)


@pytest.mark.parametrize(
    ('epochs', 'checkpoint', 'broken_at', 'kept'),
    [
        (1, dict(by_epoch=True, interval=1), 2, []),
        (2, dict(by_epoch=True, interval=1), 4, ['epoch_1.pth']),
        (3, dict(by_epoch=False, interval=2), 4, ['iter_2.pth']),
        (2, dict(by_epoch=False, interval=1), 3, ['iter_1.pth', 'iter_2.pth']),
    ],
)
@pytest.mark.parametrize(('waits', 'clip'), [(False, None), (True, None), (False, dict(max_norm=1.0))])
def test_a_gradient_that_is_not_a_number_stops_the_run_before_the_next_checkpoint(
    images, tmp_path, monkeypatch, epochs, checkpoint, broken_at, kept, waits, clip
):
    monkeypatch.setattr(invalid_loss_hook, '_has_to_wait', lambda flag: waits)  # as on a GPU
    runner = build_runner(
        tmp_path,
        images,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3), clip_grad=clip),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', **checkpoint)),
    )
    break_after(runner, broken_at, float('nan'))
    last = kept[-1].replace('.', r'\.') if kept else 'none yet'
    with pytest.raises(
        FloatingPointError,
        match=rf'The loss or its gradient is not finite at iteration {broken_at} .*learning rate 0\.001.*{last}',
    ):
        runner.train()
    assert torch.isfinite(runner.model.neck.generator_x).all() == (not waits)  # else the step was taken
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == kept


def test_weights_that_the_last_step_broke_enter_no_checkpoint(images, tmp_path):
    """Its gradient was finite, and so was the loss before it."""
    runner = build_runner(tmp_path, images, optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e30)))
    for iteration in (1, 2):
        break_after(runner, iteration, 0.0, *(n for n, each in runner.model.named_parameters() if each.requires_grad))
    break_after(runner, 2, 1e30)
    with pytest.raises(FloatingPointError, match=r'state_dict\.neck\.generator_x.* after iteration 2 .*none yet'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


def test_an_optimizer_state_that_overflowed_enters_no_checkpoint(images, tmp_path):
    runner = build_runner(tmp_path, images)
    break_after(runner, 2, 1e30)  # finite, its square is not: AdamW would never move A again
    with pytest.raises(FloatingPointError, match=r'1 of \d+ tensors, optimizer\..*exp_avg_sq.* after iteration 2 '):
        runner.train()
    assert torch.isfinite(runner.model.neck.generator_x).all()
    assert not list(tmp_path.glob('*.pth'))


def all_finite(path) -> bool:
    content = read_checkpoint(path)
    states = [*content['state_dict'].values(), *(v for s in content['optimizer']['state'].values() for v in s.values())]
    return all(bool(torch.isfinite(each).all()) for each in states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('neck', 'clip'),
    [
        (dict(), None),
        (dict(), dict(max_norm=1.0)),
        (dict(scheme='exp'), None),
        (dict(commute='penalty'), None),
    ],
    ids=str,
)
def test_a_thousand_steps_at_ten_times_the_rate_stay_finite_or_stop_with_the_iteration(images, tmp_path, neck, clip):
    model = qbheat_config(decoder=dict(depth=2))
    model['neck'].update(neck)
    runner = build_runner(
        tmp_path,
        images,
        sampler='InfiniteSampler',  # mmengine waits two seconds where a loader by iterations starts over
        model=model,
        train_cfg=dict(by_epoch=False, max_iters=1000),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1.5e-2, betas=(0.9, 0.95)), clip_grad=clip),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=25)),
    )
    try:
        runner.train()
    except FloatingPointError as error:
        assert re.search(rf'iteration {runner.iter + 1} |after iteration {runner.iter} ', str(error))  # noqa: PT017
    else:
        assert runner.iter == 1000
        assert (tmp_path / 'iter_1000.pth').is_file()
    assert all(all_finite(path) for path in tmp_path.glob('*.pth'))


class ScaledWrapper(AmpOptimWrapper):
    """AmpOptimWrapper without its demand for a GPU, and without autocast."""

    def __init__(self, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**60)

    optim_context = OptimWrapper.optim_context


@pytest.fixture
def scaled_wrapper():
    OPTIM_WRAPPERS.register_module(module=ScaledWrapper, force=True)
    yield
    OPTIM_WRAPPERS._module_dict.pop('ScaledWrapper')


@pytest.mark.usefixtures('scaled_wrapper')
@pytest.mark.parametrize(
    ('broken', 'clip', 'stops_at'),
    [
        (range(3, 22), None, None),
        (range(3, 23), None, 22),
        (range(3, 23), dict(max_norm=1.0), 22),
        ([*range(3, 15), *range(16, 28)], dict(max_norm=1.0), None),
    ],
    ids=['19', '20', '20 with clipping', '12 and 12'],
)
def test_a_scaler_may_skip_steps_but_not_twenty_in_a_row(images, tmp_path, broken, clip, stops_at):
    runner = build_runner(
        tmp_path,
        images,
        sampler='InfiniteSampler',
        train_cfg=dict(by_epoch=False, max_iters=28),
        optim_wrapper=dict(type='ScaledWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=clip),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
    )
    for iteration in broken:
        break_after(runner, iteration, float('inf'))
    if stops_at is None:
        runner.train()
        assert all_finite(tmp_path / 'iter_28.pth')
    else:
        with pytest.raises(
            FloatingPointError,
            match=rf'skipped 20 steps in a row.* iteration {stops_at} .*learning rate .*iter_20\.pth',
        ):
            runner.train()


@pytest.mark.usefixtures('scaled_wrapper')
def test_a_skipped_step_forgives_its_loss_and_another_does_not(images, tmp_path, monkeypatch):
    options = dict(optim_wrapper=dict(type='ScaledWrapper', optimizer=dict(type='AdamW', lr=1e-3)))
    for factor, stops in ((float('nan'), False), (1.0, True)):
        runner = build_runner(tmp_path, images, **options)
        parse_losses = runner.model.parse_losses

        def parse(losses, parse_losses=parse_losses, factor=factor):
            loss, log = parse_losses(losses)
            return loss * factor, log | dict(loss=torch.tensor(float('nan')))

        monkeypatch.setattr(runner.model, 'parse_losses', parse)
        if stops:
            with pytest.raises(FloatingPointError, match='The loss is not finite at iteration 1 '):
                runner.train()
        else:
            runner.train()


def test_finite_loss_hook_names_the_last_good_checkpoint(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('epoch_3.pth')
    runner = SimpleNamespace(
        iter=9,
        epoch=3,
        work_dir=str(tmp_path),
        train_dataloader=range(100),
        optim_wrapper=SimpleNamespace(get_lr=lambda: dict(lr=[1e-3])),
    )
    hook = InvalidLossHook(interval=5)
    hook.after_train_iter(runner, 9, outputs=dict(loss=torch.tensor(1.0)))
    with pytest.raises(FloatingPointError, match=r'loss is not finite at iteration 10 .*rate 0\.001.*epoch_3\.pth'):
        hook.after_train_iter(runner, 9, outputs=dict(loss=torch.tensor(float('inf'))))


def test_calibration_gives_the_backbone_the_statistics_of_its_data():
    MMLogger.get_instance('calibration', logger_name='calibration')
    torch.manual_seed(0)
    model = MODELS.build(frozen_classifier_config())
    model.train()  # frozen parts go to eval mode
    images = torch.rand(8, 3, 64, 64) * 10
    data = torch.utils.data.DataLoader([dict(inputs=image) for image in images], batch_size=8)
    weights = {name: value.clone() for name, value in model.backbone.named_parameters()}
    hook = HOOKS.build(dict(type='CalibrateBNHook', num_samples=8))
    hook.before_train(SimpleNamespace(iter=0, model=model, train_dataloader=data))
    norm = model.backbone.stem[1]
    torch.testing.assert_close(norm.running_mean, model.backbone.stem[0](images).mean((0, 2, 3)))
    assert not norm.training
    assert all(torch.equal(value, weights[name]) for name, value in model.backbone.named_parameters())

    with torch.no_grad():
        norm.running_mean.zero_()
    hook.before_train(SimpleNamespace(iter=5, model=model, train_dataloader=data))
    assert not norm.running_mean.any()  # a resumed run keeps its statistics


def test_validation_before_training_opens_the_curve(images, tmp_path):
    build_runner(
        tmp_path,
        images,
        val_dataloader=image_loader(images, test_mode=True),
        val_cfg=dict(),
        val_evaluator=dict(type='ReconstructionLoss'),
        custom_hooks=[dict(type='ValBeforeTrainHook')],
    ).train()
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    curve = [(r['step'], r['reconstruction/masked_loss']) for r in records if 'reconstruction/masked_loss' in r]
    assert [step for step, _ in curve] == [0, 1]
