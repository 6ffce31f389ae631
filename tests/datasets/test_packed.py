import errno
import io
import json
import os
import pickle
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import PIPELINE as QBHEAT_PIPELINE
from helpers.models import ROOT, write_images
from helpers.runs import image_loader, pretraining, run, same_bits
from mmengine.hooks import Hook
from mmpretrain.registry import DATASETS
from PIL import Image

from qbheat_mm.datasets import packing
from qbheat_mm.datasets.packed import INDEX, PIXELS, Pack, PackError, partial_folder, without_loading
from qbheat_mm.datasets.packing import pack_images
from qbheat_mm.datasets.transforms import decode_image

PIPELINE = [
    dict(type='LoadImage'),
    dict(type='TorchRandomResizedCrop', scale=32),
    dict(type='PackInputs', meta_keys=('img_path',)),
]


def build(root, kind='PackedImageDataset', **kwargs):
    return DATASETS.build(dict(type=kind, data_root=str(root), **{'pipeline': PIPELINE, **kwargs}))


@pytest.fixture
def source(tmp_path):
    """Class folders whose names sort differently with and without what follows, an empty one, an image beside them."""
    for i, name in enumerate(('cat', 'cat-big', 'dog')):
        write_images(tmp_path / 'source' / name, 3, size=60 + 10 * i, seed=i)
    (tmp_path / 'source' / 'bird').mkdir()
    write_images(tmp_path / 'source', 1, seed=9)
    return tmp_path / 'source'


@pytest.fixture
def pack(source, tmp_path):
    return pack_images(source, tmp_path / 'pack')


@pytest.mark.parametrize('with_label', [True, False])
def test_samples_are_those_of_the_folder(source, pack, with_label):
    ours, theirs = build(pack.folder, with_label=with_label), build(source, 'ImageFolderDataset', with_label=with_label)
    assert len(ours) == len(theirs) == (9 if with_label else 10)
    assert ours.metainfo.get('classes') == theirs.metainfo.get('classes')
    for index in range(len(ours)):
        samples = []
        for dataset in (ours, theirs):
            np.random.seed(index)
            samples.append(dataset[index])
        assert torch.equal(samples[0]['inputs'], samples[1]['inputs'])
        mine, its = (sample['data_samples'] for sample in samples)
        assert mine.img_path.removeprefix(str(pack.folder)) == its.img_path.removeprefix(str(source))
        assert not with_label or torch.equal(mine.gt_label, its.gt_label)


@pytest.mark.parametrize(
    'config',
    [dict(type='CustomDataset', data_prefix='train'), dict(type='ImageNet', split='train', classes=('a', 'b'))],
    ids=lambda config: config['type'],
)
def test_configs_of_mmpretrains_datasets_change_by_their_type_alone(image_folder, tmp_path, config):
    shutil.copytree(image_folder, tmp_path / 'data/train')
    pack_images(image_folder, tmp_path / 'packs/train')
    config['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=16), dict(type='PackInputs')]
    theirs = DATASETS.build(dict(config, data_root=str(tmp_path / 'data')))
    ours = DATASETS.build(dict(config, data_root=str(tmp_path / 'packs'), type='PackedImageDataset'))
    assert ours.get_gt_labels().tolist() == theirs.get_gt_labels().tolist()
    assert ours[3]['inputs'].shape == theirs[3]['inputs'].shape == (3, 16, 16)


def test_a_loader_that_crops_becomes_the_crop():
    reduced = dict(type='LoadReducedRandomResizedCrop', scale=32, ignore_empty=True)
    steps = without_loading([reduced, dict(type='mmpretrain.PackInputs')])
    assert steps == [dict(type='TorchRandomResizedCrop', scale=32), dict(type='mmpretrain.PackInputs')]


def test_an_annotation_file_chooses_images(pack, tmp_path):
    (tmp_path / 'list.txt').write_text('dog/001.jpg 1\ncat/000.jpg 0\n')
    dataset = build(pack.folder, ann_file=str(tmp_path / 'list.txt'))
    assert dataset.get_gt_labels().tolist() == [1, 0]
    (tmp_path / 'list.txt').write_text('dog/009.jpg 1\n')
    with pytest.raises(PackError, match=r'no image "dog/009\.jpg"'):
        build(pack.folder, ann_file=str(tmp_path / 'list.txt'))


def test_images_are_rotated_reduced_and_never_enlarged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'source').mkdir()
    Image.new('RGB', (400, 300), 'red').save(tmp_path / 'source/large.png', exif=exif)
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'source/small.png')
    pack = pack_images(tmp_path / 'source', tmp_path / 'pack', size=90)
    assert dict(zip(pack.names, pack.shapes)) == {'large.png': [120, 90], 'small.png': [30, 40]}
    assert pack[0][50, 50].tolist() == [0, 0, 255]


def test_pixels_are_mapped_not_copied(pack):
    image = pack[0]
    assert not image.flags.writeable
    assert not image.flags.owndata
    assert np.array_equal(image, decode_image((pack.folder.parent / 'source' / pack.names[0]).read_bytes()))
    assert len(pickle.dumps(pack)) < 5000  # ten images of ten kilobytes


def test_unreadable_images_are_counted_named_and_refused_for_a_score(source, tmp_path, load_tool, capsys):
    (source / 'dog/bad.jpg').write_bytes(b'no image')
    load_tool('dataset_converters/pack_images.py').main([str(source), str(tmp_path / 'pack')])
    output = capsys.readouterr().out
    assert '10 images, 4 classes' in output
    assert '1 images could not be read' in output
    assert 'dog/bad.jpg: ValueError: it is no image of a known format' in output
    assert len(build(tmp_path / 'pack')) == 9
    with pytest.raises(PackError, match=r'lacks 1 images.*dog/bad\.jpg'):
        build(tmp_path / 'pack', test_mode=True)


def test_only_unreadable_images_leave_nothing(tmp_path):
    (tmp_path / 'source').mkdir()
    (tmp_path / 'source/bad.jpg').write_text('no')
    with pytest.raises(PackError, match='None of 1 images'):
        pack_images(tmp_path / 'source', tmp_path / 'pack')
    assert [path.name for path in tmp_path.iterdir()] == ['source']


def truncate(pack):
    os.truncate(pack.path, pack.path.stat().st_size - 1)


def append(pack):
    with pack.path.open('ab') as file:
        file.write(b'0')


def swap(pack):
    """The pixels of another pack of the same names and sizes."""
    source = pack.folder.parent / 'source'
    for path in source.rglob('*.jpg'):
        size = Image.open(path).size
        Image.new('RGB', size, 'blue').save(path)
    other = pack_images(source, pack.folder.parent / 'other')
    assert other.path.stat().st_size == pack.path.stat().st_size
    other.path.replace(pack.path)


def edit(pack):
    """A changed label."""
    content = json.loads((pack.folder / INDEX).read_text())
    content['labels'][-1] = 0
    (pack.folder / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (truncate, r'images\.bin" has \d+ bytes and should have \d+: it is truncated'),
        (swap, r'images\.bin" and "index\.json" beside it are not of the same pack'),
        (edit, r'images\.bin" and "index\.json" beside it are not of the same pack'),
        (lambda pack: pack.path.write_bytes(bytes(1000)), r'images\.bin" is not a file of packed images'),
        (lambda pack: pack.path.unlink(), r'images\.bin" cannot be read \(No such file'),
        (lambda pack: (pack.folder / INDEX).write_text('{}'), r'index\.json" is not the index of packed images'),
        (lambda pack: (pack.folder / INDEX).write_text('[1'), r'index\.json" is not the index of packed images'),
        (
            lambda pack: (pack.folder / INDEX).write_text('{"format": "qbheat_mm images", "version": 9}'),
            r'index\.json" has version 9',
        ),
        (
            lambda pack: (pack.folder / INDEX).write_text('{"format": "qbheat_mm images"}'),
            r'index\.json" is not the index of packed images',
        ),
        (lambda pack: os.truncate(pack.folder / INDEX, 500), r'index\.json" is not the index of packed images'),
        (lambda pack: (pack.folder / INDEX).write_bytes(b'\xff\xfe\0'), r'index\.json" is not the index of packed'),
        (append, r'images\.bin" has \d+ bytes and should have \d+: it is truncated, or something was added'),
    ],
)
def test_damaged_packs_are_refused_with_their_name(pack, damage, message):
    damage(pack)
    with pytest.raises(PackError, match=message) as error:
        build(pack.folder)
    assert str(pack.folder) in str(error.value)


def test_changed_pixels_are_found_and_named(pack, load_tool, capsys):
    tool = load_tool('dataset_converters/pack_images.py')
    tool.main([str(pack.folder), '--verify'])
    assert '10 images are as they were written' in capsys.readouterr().out
    with pack.path.open('r+b') as file:
        file.seek(-1, io.SEEK_END)
        file.write(b'\xff' if pack[9][-1, -1, -1] != 255 else b'\0')
    with pytest.raises(SystemExit, match=r'1 of 10 images .* are damaged: dog/002\.jpg'):
        tool.main([str(pack.folder), '--verify'])


def test_a_missing_pack_names_the_tool_and_an_interrupted_one(pack, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere.*pack_images\.py\.$'):
        Pack(tmp_path / 'nowhere')
    pack.folder.rename(partial_folder(pack.folder))
    with pytest.raises(FileNotFoundError, match=r'pack\.packing" was interrupted'):
        Pack(pack.folder)


def test_labels_need_class_folders(tmp_path):
    write_images(tmp_path / 'source', 2)
    pack_images(tmp_path / 'source', tmp_path / 'pack')
    with pytest.raises(PackError, match='no labels'):
        build(tmp_path / 'pack')
    assert len(build(tmp_path / 'pack', with_label=False)) == 2


@pytest.mark.parametrize('torn', [False, True], ids=['between images', 'within the journal'])
def test_an_interrupted_run_continues(source, tmp_path, monkeypatch, torn):
    monkeypatch.setattr(packing, 'CHUNK', 2)
    whole = pack_images(source, tmp_path / 'whole')
    written, write = [], packing._write_lines

    def write_lines(file, records):
        write(file, records)
        written.append(len(records))
        if sum(written) > 6:  # the task and six images
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(packing, '_write_lines', write_lines)
    with pytest.raises(KeyboardInterrupt):
        pack_images(source, tmp_path / 'pack')
    assert not (tmp_path / 'pack').exists()
    if torn:  # as a kill leaves it
        journal = partial_folder(tmp_path / 'pack') / packing.JOURNAL
        os.truncate(journal, journal.stat().st_size - 5)
    read = []
    read_image = packing._read_image
    monkeypatch.setattr(packing, '_read_image', lambda path, size: read.append(path) or read_image(path, size))
    resumed = pack_images(source, tmp_path / 'pack')
    assert len(read) == 4 + torn
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert (resumed.folder / INDEX).read_bytes() == (whole.folder / INDEX).read_bytes()
    assert not partial_folder(resumed.folder).exists()


@pytest.fixture
def unfinished(source, tmp_path, monkeypatch):
    """A pack interrupted after its last image."""
    monkeypatch.setattr(packing, '_write_index', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack_images(source, tmp_path / 'pack')
    monkeypatch.undo()
    return partial_folder(tmp_path / 'pack')


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace_image(source):
    """By another of the same size in pixels."""
    write_images(source / 'cat', 1, size=60, seed=7)


def rename_class(source):
    (source / 'bird').rename(source / 'zebra')


@pytest.mark.parametrize(
    ('change', 'size'), [(None, 30), (replace_image, None), (rename_class, None)], ids=['size', 'image', 'class']
)
def test_another_task_starts_over(source, unfinished, change, size, monkeypatch):
    said = []
    monkeypatch.setattr(packing, 'print_log', lambda text, **kwargs: said.append(text))
    if change:
        change(source)
    resumed = pack_images(source, unfinished.with_name('pack'), size)
    assert 'pack.packing" was begun with other images or another size' in said[0]
    assert contents(resumed.folder) == contents(pack_images(source, unfinished.with_name('whole'), size).folder)


@pytest.mark.parametrize('damaged', [PIXELS, packing.JOURNAL])
def test_it_continues_from_wherever_a_file_ends(source, unfinished, damaged):
    """Also where the rest of the journal was never written, as when the machine loses its power."""
    whole = contents(pack_images(source, unfinished.with_name('whole')).folder)
    start = contents(unfinished)
    for cut in np.linspace(0, len(start[damaged]), 5, dtype=int):
        for rest in (b'',) if damaged == PIXELS else (b'', b'\0' * 9 + b'\n'):
            unfinished.mkdir(exist_ok=True)
            for name, content in start.items():
                (unfinished / name).write_bytes(content[:cut] + rest if name == damaged else content)
            assert contents(pack_images(source, unfinished.with_name('pack')).folder) == whole
            shutil.rmtree(unfinished.with_name('pack'))


def test_a_folder_that_came_meanwhile_costs_no_work(source, unfinished, monkeypatch):
    out, write_index = unfinished.with_name('pack'), packing._write_index

    def create(*args):
        (out / 'mine').mkdir(parents=True)
        write_index(*args)

    monkeypatch.setattr(packing, '_write_index', create)
    with pytest.raises(OSError, match='not empty'):
        pack_images(source, out)
    monkeypatch.undo()
    assert [path.name for path in out.iterdir()] == ['mine']
    shutil.rmtree(out)
    monkeypatch.setattr(packing, '_read_image', lambda *args: pytest.fail('it is read again'))
    assert len(pack_images(source, out)) == 10


def test_a_pack_within_its_source_is_refused(source):
    with pytest.raises(PackError, match=r'lies in .*source", where it would be a class'):
        pack_images(source, source / 'cat' / 'pack')
    assert not list(source.rglob('pack*'))


def test_links_and_folders_of_the_same_name(source, tmp_path, capsys, load_tool):
    """A class that is a link, one within another of its name, and names that are no Unicode."""
    shutil.move(source / 'dog', tmp_path / 'elsewhere')
    (source / 'dog').symlink_to(tmp_path / 'elsewhere')
    write_images(source / 'cat' / 'cat', 1, seed=5)
    (source / 'cat' / '000.jpg').rename(source / 'cat' / os.fsdecode(b'\xff.jpg'))
    (source / 'lost.jpg').symlink_to('nowhere')
    load_tool('dataset_converters/pack_images.py').main([str(source), str(tmp_path / 'pack')])
    assert '11 images, 4 classes' in capsys.readouterr().out
    ours, theirs = build(tmp_path / 'pack', with_label=True), build(source, 'ImageFolderDataset', with_label=True)
    assert ours.get_gt_labels().tolist() == theirs.get_gt_labels().tolist()
    names = [
        [os.path.relpath(each.get_data_info(i)['img_path'], each.data_root) for i in range(len(each))]
        for each in (ours, theirs)
    ]
    assert names[0] == names[1]
    assert 'cat/cat/000.jpg' in names[0]


def test_an_unreadable_image_of_any_name_is_printed(source, tmp_path, capsys, load_tool):
    (source / 'cat' / 'a\udcff\nb.jpg').write_text('no')
    load_tool('dataset_converters/pack_images.py').main([str(source), str(tmp_path / 'pack')])
    assert r'cat/a\udcff\nb.jpg: ValueError: it is no image of a known format' in capsys.readouterr().out


def test_a_killed_run_continues(tmp_path):
    """SIGKILL after the second chunk."""
    write_images(tmp_path / 'source', 9)
    code = f"""
import os, signal, sys
from qbheat_mm.datasets import packing
packing.CHUNK, lines = 2, packing._write_lines
count = 0
def write(file, records):
    global count
    lines(file, records)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
packing._write_lines = write
packing.pack_images('{tmp_path}/source', '{tmp_path}/pack')
"""
    run(sys.executable, '-c', code, fails=True)
    journal = partial_folder(tmp_path / 'pack') / packing.JOURNAL
    assert len(journal.read_text().splitlines()) == 5
    assert len(pack_images(tmp_path / 'source', tmp_path / 'pack')) == 9


@pytest.mark.parametrize('name', [PIXELS, INDEX, packing.JOURNAL])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch, name, number):
    real = packing._sync

    def sync(file):
        if str(file.name).endswith(name):
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(packing, '_sync', sync)
    with pytest.raises(PackError, match=rf'{os.strerror(number)}.*nothing of it was left'):
        pack_images(source, tmp_path / 'pack')
    assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_the_system_refuses_to_write_more(source, tmp_path):
    """A real limit, which strikes within a file that is larger than Python's buffer."""
    code = (
        'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n'
        'from qbheat_mm.datasets.packing import pack_images\n'
        f'pack_images({str(source)!r}, {str(tmp_path / "pack")!r})'
    )
    output = run(sys.executable, '-c', code, fails=True)
    assert 'cannot be written (File too large); nothing of it was left' in output
    assert [path.name for path in tmp_path.iterdir()] == ['source']
    assert pack_images(source, tmp_path / 'pack').path.stat().st_size > 50_000


def test_what_will_not_fit_is_refused_beforehand(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packing.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(PackError, match=r'would take about 0\.00 GB'):
        pack_images(source, tmp_path / 'pack')
    assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_two_processes_do_not_write_the_same_pack(source, tmp_path, monkeypatch):
    def write_pixels(*args):
        with pytest.raises(PackError, match='Another process'):
            pack_images(source, tmp_path / 'pack')
        return original(*args)

    original = packing._write_pixels
    monkeypatch.setattr(packing, '_write_pixels', write_pixels)
    pack_images(source, tmp_path / 'pack')


def test_an_existing_folder_stays(source, tmp_path):
    with pytest.raises(FileExistsError, match='exists already'):
        pack_images(source, source)


def test_the_command_line(source, tmp_path):
    output = run(sys.executable, ROOT / 'tools/dataset_converters/pack_images.py', source, tmp_path / 'out')
    assert f'wrote {tmp_path}/out: 10 images, 4 classes' in output
    assert '10/10' in output
    assert 'no folder' in run(
        sys.executable, ROOT / 'tools/dataset_converters/pack_images.py', tmp_path / 'no', tmp_path / 'o', fails=True
    )


class Losses(Hook):
    """Keeps the loss of each iteration."""

    def __init__(self):
        self.values = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append(outputs['loss'].item())


@pytest.mark.parametrize('device_crops', [False, True], ids=['crops in workers', 'crops on the device'])
def test_a_pretraining_from_a_lossless_pack_has_the_curve_from_files(source, pack, tmp_path, device_crops):
    """To the bit, in loss, weights and state of the optimizer."""
    crop = dict(type='TorchRandomResizedCrop', scale=64, interpolation='bicubic')
    pipeline = [PIPELINE[0], crop, dict(type='RandomFlip', prob=0.5), *QBHEAT_PIPELINE[2:]]
    curves = []
    for name, root in (('files', source), ('packs', pack.folder)):
        loader = image_loader(root, batch_size=2, pipeline=pipeline)
        loader.update(num_workers=2, persistent_workers=True)
        changes = dict(train_dataloader=loader)
        if name == 'packs':
            loader['dataset'].update(type='PackedImageDataset', device_crops=device_crops)
            if device_crops:
                loader['collate_fn']['type'] = 'collate_views'
                changes['model.data_preprocessor.type'] = 'ViewDataPreprocessor'
        runner, losses = pretraining(tmp_path / name, root, **changes), Losses()
        runner.register_hook(losses)
        runner.train()
        curves.append(losses.values)
    assert len(curves[0]) == 10
    assert curves[0] == curves[1]
    assert same_bits(tmp_path / 'files/epoch_2.pth', tmp_path / 'packs/epoch_2.pth')
