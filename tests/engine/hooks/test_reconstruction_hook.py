import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers.models import write_images
from helpers.runs import build_runner
from mmengine.runner import Runner
from PIL import Image

from qbheat_mm.evaluation.functional.reconstruction import reconstruct
from qbheat_mm.visualization import draw_reconstructions

NUMBERS = itertools.count()
TENSORBOARD = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]


def run_with_drawings(work_dir: Path, data: Path, epochs: int = 1, backends=TENSORBOARD[:1], **options) -> Runner:
    hooks = [dict(type='ReconstructionHook', **options), dict(type='HeatStatisticsHook')]
    return build_runner(
        work_dir,
        data,
        custom_hooks=hooks,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        visualizer=dict(type='UniversalVisualizer', vis_backends=backends, name=f'drawings{next(NUMBERS)}'),
    )


def test_drawings_are_the_models_reconstructions_every_interval_and_at_the_end(images, tmp_path):
    shown = write_images(tmp_path / 'shown', 3, size=96, seed=1)
    options = dict(limit=2, interval=2, visible='bottom_right')
    runner = run_with_drawings(tmp_path / 'run', images, epochs=3, images=str(tmp_path / 'shown'), **options)
    runner.train()
    files = sorted((tmp_path / 'run').glob('*/vis_data/vis_image/*'))
    assert [file.name for file in files] == ['reconstruction_2.png', 'reconstruction_3.png']
    assert runner.model.training
    results = reconstruct(runner.model, shown[:2], 64, visible='bottom_right')
    assert np.array_equal(np.asarray(Image.open(files[-1])), np.asarray(draw_reconstructions(results)))
    assert not np.array_equal(np.asarray(Image.open(files[0])), np.asarray(Image.open(files[1])))


@pytest.mark.parametrize(('shown', 'message'), [(['gone.jpg'], r'gone\.jpg'), ('.', r'no image in ')])
def test_missing_images_are_named_before_training(images, tmp_path, shown, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = run_with_drawings(tmp_path / 'run', images, images=shown)
    with pytest.raises(FileNotFoundError, match=message):
        runner.train()
    assert runner.iter == 0


def test_tensorboard_receives_drawings_and_statistics(images, tmp_path):
    tensorboard = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    shown = sorted(images.iterdir())[:1]
    runner = run_with_drawings(tmp_path, images, backends=TENSORBOARD, images=[str(shown[0])])
    runner.train()
    runner.visualizer.close()
    (events,) = tmp_path.glob('*/vis_data/events*')
    record = tensorboard.EventAccumulator(str(events)).Reload()
    (image,) = record.Images('reconstruction')
    drawing = draw_reconstructions(reconstruct(runner.model, shown, 64))
    assert (image.step, image.width, image.height) == (1, *drawing.size)
    assert record.Scalars('heat/norm_a')[0].value > 0
