import subprocess
import sys

import mmcv
import numpy as np
import pytest
import torch
from helpers.models import PIPELINE, ROOT, qbheat_config, write_images
from mmengine.config import Config
from PIL import Image

from qbheat_mm.apis import QBHeatInferencer
from qbheat_mm.visualization import draw_reconstructions

CONFIG = Config(dict(model=qbheat_config(), train_dataloader=dict(dataset=dict(pipeline=PIPELINE))))


@pytest.fixture
def inferencer():
    torch.manual_seed(0)
    return QBHeatInferencer(CONFIG, device='cpu')


def test_a_folder_an_array_and_a_path_give_the_same(inferencer, tmp_path):
    (path,) = write_images(tmp_path / 'images', 1, size=64, suffix='.png')
    (from_folder,) = inferencer(str(tmp_path / 'images'))
    (from_path,) = inferencer.reconstruct(path)
    (from_array,) = inferencer.reconstruct(mmcv.imread(str(path)))
    for name in ('original', 'visible', 'reconstruction'):
        assert np.array_equal(from_folder[name], from_path[name])
        assert np.array_equal(from_folder[name], from_array[name])


def test_colors_and_the_visible_quarter_are_right(inferencer, tmp_path):
    array = np.zeros((64, 64, 3), np.uint8)
    array[..., 0] = 200  # red
    array[:32, 32:, 2] = 90
    Image.fromarray(array).save(tmp_path / 'red.png')
    (result,) = inferencer.reconstruct(tmp_path / 'red.png', visible='top_right')
    assert np.array_equal(result['original'], array)
    assert np.array_equal(result['reconstruction'][:32, 32:], array[:32, 32:])
    assert np.array_equal(result['visible'][:32, 32:], array[:32, 32:])
    assert (result['visible'][32:] == 128).all()


def test_batches_make_no_difference(inferencer, tmp_path):
    paths = write_images(tmp_path, 5, size=80)
    one, three = (inferencer.reconstruct(paths, batch_size=size) for size in (1, 3))
    assert len(three) == 5
    for first, second in zip(one, three):
        assert np.abs(first['reconstruction'].astype(int) - second['reconstruction']).max() <= 1
        assert first['masked_loss'] == pytest.approx(second['masked_loss'], rel=1e-4)


def test_features_are_those_of_whole_images(inferencer, tmp_path):
    features = inferencer.extract_feat(write_images(tmp_path, 3, size=64))
    assert len(features) == 3
    assert features[0][0].shape == (20, 4, 4)


def test_missing_images_are_named(inferencer, tmp_path):
    with pytest.raises(FileNotFoundError, match='no image in'):
        inferencer(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'nowhere\.jpg'):
        inferencer('nowhere.jpg')
    (tmp_path / 'text.jpg').write_text('hello')
    with pytest.raises(ValueError, match=r'text\.jpg" cannot be read'):
        inferencer(str(tmp_path / 'text.jpg'))


def test_drawing_holds_every_image_where_the_heading_says(inferencer, tmp_path):
    results = inferencer.reconstruct(write_images(tmp_path, 3, size=64))
    drawing = np.asarray(draw_reconstructions(results, rows=2))
    assert drawing.shape == (22 + 2 * 70, 2 * (3 * 70 + 6) + 6, 3)
    assert np.array_equal(drawing[22:86, 6:70], results[0]['original'])
    assert np.array_equal(drawing[92:156, 146:210], results[1]['reconstruction'])
    assert np.array_equal(drawing[22:86, 222:286], results[2]['original'])


def test_tool_writes_the_image(tmp_path):
    write_images(tmp_path / 'images', 2, size=64)
    CONFIG.dump(tmp_path / 'config.py')
    torch.save(QBHeatInferencer(CONFIG).model.state_dict(), tmp_path / 'model.pth')
    tool = ROOT / 'tools/analysis_tools/reconstruct.py'
    command = [sys.executable, tool, tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'images']
    result = subprocess.run(
        [*command, '--out', tmp_path / 'out' / 'r.png', '--device', 'cpu'], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert '2 of 2 images' in result.stdout
    assert Image.open(tmp_path / 'out' / 'r.png').size == (3 * 70 + 12, 22 + 2 * 70)


def test_the_size_is_that_of_the_training_crops_or_given():
    assert QBHeatInferencer(CONFIG, device='cpu').img_size == 64
    wrapped = dict(type='RepeatDataset', times=2, dataset=CONFIG.train_dataloader.dataset)
    repeated = Config(dict(model=qbheat_config(), train_dataloader=dict(dataset=wrapped)))
    assert QBHeatInferencer(repeated, device='cpu').img_size == 64
    unknown = Config(dict(model=qbheat_config()))
    with pytest.raises(ValueError, match='give img_size'):
        QBHeatInferencer(unknown, device='cpu')
    assert QBHeatInferencer(unknown, device='cpu', img_size=96).img_size == 96
