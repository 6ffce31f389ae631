import numpy as np
import pytest
from helpers.models import write_images
from PIL import Image

from qbheat_mm.datasets import ImageFolderDataset


@pytest.fixture
def tool(load_tool):
    return load_tool('dataset_converters/class_folders.py')


def tree(folder):
    return {path.name: len(list(path.iterdir())) for path in sorted(folder.iterdir())}


def refuse(tool, source, message, *options):
    """Expect an error, and nothing written beside the source."""
    before = set(source.parent.iterdir())
    with pytest.raises(SystemExit, match=message):
        tool.main([str(source), str(source.parent / 'out'), *options])
    assert set(source.parent.iterdir()) == before


@pytest.fixture
def imagenette(tmp_path):
    """The layout of Imagenette's archive."""
    for split, count in (('train', 3), ('val', 2)):
        for i, name in enumerate(('n01440764', 'n02102040')):
            write_images(tmp_path / 'imagenette' / split / name, count, size=90, seed=i)
    (tmp_path / 'imagenette' / 'noisy_imagenette.csv').write_text('')
    return tmp_path / 'imagenette'


def test_an_imagenette_folder_is_shrunk_and_read_by_the_configs_dataset(imagenette, tool, tmp_path, capsys):
    tool.main([str(imagenette), str(tmp_path / 'out'), '--size', '64'])
    assert tree(tmp_path / 'out' / 'train') == {'n01440764': 3, 'n02102040': 3}
    assert tree(tmp_path / 'out' / 'val') == {'n01440764': 2, 'n02102040': 2}
    for path in (tmp_path / 'out').rglob('*.jpg'):
        with Image.open(path) as image:
            assert image.size == (64, 64)
    dataset = ImageFolderDataset(data_root=str(tmp_path / 'out'), data_prefix='train')
    assert dataset.metainfo['classes'] == ('n01440764', 'n02102040')
    assert 'NUM_CLASSES=2' in capsys.readouterr().out


def test_sixteen_bits_are_reduced_to_eight(tmp_path, tool):
    ramp = np.linspace(0, 65535, 2**12).astype(np.uint16).reshape(64, 64)
    for name, suffix in (('cat', '.png'), ('dog', '.tif'), ('cow', '.pgm')):
        (tmp_path / 'pets' / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(ramp).save(tmp_path / 'pets' / name / f'{i}{suffix}')
    tool.convert(tmp_path / 'pets', tmp_path / 'out', size=32)
    files = list((tmp_path / 'out').rglob('*/*.*'))
    assert len(files) == 6
    for path in files:
        with Image.open(path) as image:
            assert image.size == (32, 32)
            assert np.asarray(image).mean() == pytest.approx(127, abs=2)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / 'pets' / 'cow' / 'float.tif')
    with pytest.raises(tool.LayoutError, match=r'float\.tif" cannot be read .*floating-point'):
        tool.convert(tmp_path / 'pets', tmp_path / 'out2', size=32)


def test_a_bomb_is_named(tmp_path, tool, monkeypatch):
    write_images(tmp_path / 'pets' / 'cat', 2)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    refuse(tool, tmp_path / 'pets', r'00\d\.jpg" cannot be read \(Image size .* exceeds limit', '--size', '32')


def test_a_tree_of_class_folders_is_split_without_overlap(tmp_path, tool):
    write_images(tmp_path / 'pets' / 'cat' / 'home', 6, seed=0)
    write_images(tmp_path / 'pets' / 'cat' / 'street', 6, seed=1)  # the same names
    write_images(tmp_path / 'pets' / 'dog', 2, seed=2)
    assert tool.convert(tmp_path / 'pets', tmp_path / 'out') == dict(train=10, val=4)
    assert tree(tmp_path / 'out' / 'val') == {'cat': 3, 'dog': 1}
    contents = [path.read_bytes() for path in (tmp_path / 'out').rglob('*.jpg')]
    assert len(contents) == len(set(contents)) == 14


def test_a_class_folder_with_one_image_is_refused(tmp_path, imagenette, tool):
    write_images(tmp_path / 'pets' / 'cat', 3)
    write_images(tmp_path / 'pets' / 'dog', 1)
    refuse(tool, tmp_path / 'pets', r'fewer than 2 image\(s\).*: dog \(1\)')
    write_images(imagenette / 'train' / 'n03000684', 1)
    refuse(tool, imagenette, r'train" with fewer than 2 image\(s\).*: n03000684 \(1\)')


@pytest.mark.parametrize(('one', 'lacking'), [('val', 'train'), ('train', 'val')])
def test_a_class_that_one_side_lacks_is_refused(imagenette, tool, one, lacking):
    write_images(imagenette / one / 'n03000684', 2)
    refuse(tool, imagenette, rf'{one}/ has classes that {lacking}/ lacks: n03000684')


def test_other_folders_are_refused(tmp_path, imagenette, tool):
    refuse(tool, tmp_path / 'none', 'There is no folder')
    write_images(tmp_path / 'flat', 2)
    refuse(tool, tmp_path / 'flat', 'has no sub-folders')
    (imagenette / 'val' / 'n02102040' / '001.jpg').write_text('no image')
    refuse(tool, imagenette, r'val/n02102040/001\.jpg" cannot be read', '--size', '64')
    refuse(tool, imagenette, '--val-every 1 leaves nothing', '--val-every', '1')
    with pytest.raises(SystemExit, match='exists already; name another'):
        tool.main([str(imagenette), str(tmp_path)])


def test_names_as_long_as_the_file_system_takes(tmp_path, tool):
    for name in ('cat', 'dog'):
        first, second = write_images(tmp_path / 'in' / name, 2)
        first.rename(first.with_name('n' * 251 + '.jpg'))
        second.rename(second.with_name('写' * 83 + '.jpeg'))
    tool.main([str(tmp_path / 'in'), str(tmp_path / 'out')])
    assert len(ImageFolderDataset(data_root=str(tmp_path / 'out'), data_prefix='train')) == 2


def test_splits_of_other_names_are_warned_of(tmp_path, tool, monkeypatch):
    said = []
    monkeypatch.setattr('qbheat_mm.datasets.image_folder.print_log', lambda text, **kwargs: said.append(text))
    for name in ('train/cat', 'train/dog', 'test/cat', 'test/dog'):
        write_images(tmp_path / 'in' / name, 2)
    tool.main([str(tmp_path / 'in'), str(tmp_path / 'out')])
    assert 'called test, train: if these are splits' in said[0]
