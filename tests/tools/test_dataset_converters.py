import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qbheat_mm.datasets.coco import AnnotationError, parse_classes

XML = """<annotation>
  <filename>{name}</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>
{objects}
</annotation>"""


def save_image(path: Path, width: int = 40, height: int = 30, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **options)


def voc_object(name: str, box: tuple, difficult: int = 0) -> str:
    corners = ''.join(
        f'<{tag}>{value}</{tag}>' for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
    )
    return f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>'


def write_xml(path: Path, objects: str, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.format(name=path.stem + '.png', width=width, height=height, objects=objects))
    return path


@pytest.fixture
def voc(load_tool):
    return load_tool('dataset_converters/voc_to_coco.py').voc_to_coco


@pytest.fixture
def yolo(load_tool):
    return load_tool('dataset_converters/yolo_to_coco.py').yolo_to_coco


def test_voc_boxes_counts_and_classes(voc, tmp_path):
    images, xmls, out = tmp_path / 'images', tmp_path / 'xml', tmp_path / 'out' / 'train.json'
    save_image(images / 'a.png')
    save_image(images / 'sub' / 'b.png')
    save_image(images / 'c.png')
    write_xml(
        xmls / 'a.xml',
        voc_object('dog', (1, 1, 40, 30))  # VOC's corners are pixels, from 1: the whole image
        + voc_object('cat', (11, 6, 20, 10), difficult=1)
        + voc_object('cat', (-3, 5, 10, 50))  # clipped
        + voc_object('cat', (50, 5, 60, 10))  # outside
        + voc_object('cat', (20, 5, 10, 10)),  # empty
    )
    write_xml(xmls / 'sub' / 'b.xml', '')
    write_xml(xmls / 'lost.xml', '')

    counts = voc(images, out, xmls)
    content = json.loads(out.read_text())

    assert [category['name'] for category in content['categories']] == ['cat', 'dog']
    assert [image['file_name'] for image in content['images']] == ['a.png', 'sub/b.png']
    assert [annotation['bbox'] for annotation in content['annotations']] == [
        [0, 0, 40, 30],
        [10, 5, 10, 5],
        [0, 4, 10, 26],
    ]
    assert [annotation['category_id'] for annotation in content['annotations']] == [2, 1, 1]
    assert [annotation['iscrowd'] for annotation in content['annotations']] == [0, 1, 0]
    assert [annotation['id'] for annotation in content['annotations']] == [1, 2, 3]
    assert counts == {
        'images': 2,
        'boxes read': 5,
        'boxes clipped': 1,
        'boxes written': 3,
        'xml files dropped, no image': 1,
        'boxes marked difficult': 1,
        'boxes dropped, outside the image': 1,
        'boxes dropped, empty': 1,
        'images dropped, no xml': 1,
        'images without boxes': 1,
    }
    assert [path.name for path in out.parent.iterdir()] == ['train.json']  # no temporary file stays


def test_voc_split_class_choice_and_root(voc, tmp_path):
    images, out, split = tmp_path / 'images' / 'train', tmp_path / 'train.json', tmp_path / 'train.txt'
    for name in 'abc':
        save_image(images / f'{name}.png')
        write_xml(images / f'{name}.xml', voc_object('cat', (1, 1, 9, 9)) + voc_object('dog', (1, 1, 9, 9)))
    split.write_text('c\na  1\n')

    counts = voc(images, out, classes=['dog', 'bird'], split=split, root=tmp_path / 'images', zero_based=True)
    content = json.loads(out.read_text())

    assert [image['file_name'] for image in content['images']] == ['train/c.png', 'train/a.png']
    assert [category['name'] for category in content['categories']] == ['dog', 'bird']
    assert {annotation['category_id'] for annotation in content['annotations']} == {1}
    assert counts['boxes dropped, class "cat" not asked for'] == 2
    assert content['annotations'][0]['bbox'] == [1, 1, 8, 8]

    split.write_text('a\nzebra\n')
    with pytest.raises(AnnotationError, match='zebra'):
        voc(images, out, split=split)


@pytest.mark.parametrize(
    ('objects', 'line', 'reason'),
    [
        ('<object><name>cat</name>\n<bndbox></object>', 5, 'well-formed'),
        ('\n\n<object><name>cat</name></object>', 6, 'bndbox'),
        ('<object><bndbox>\n<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax></bndbox></object>', 4, 'ymax'),
        (voc_object('cat', (1, 2, 3, 4)).replace('>3<', '>three<'), 4, 'three'),
        (voc_object('', (1, 2, 3, 4)), 4, 'name'),
    ],
)
def test_voc_names_file_and_line(voc, tmp_path, objects, line, reason):
    save_image(tmp_path / 'a.png')
    path = write_xml(tmp_path / 'a.xml', objects)
    with pytest.raises(AnnotationError, match=reason) as caught:
        voc(tmp_path, tmp_path / 'out.json')
    assert str(caught.value).startswith(f'{path}:{line}: ')
    assert not (tmp_path / 'out.json').exists()


def test_voc_refuses_the_size_of_another_image(voc, tmp_path):
    save_image(tmp_path / 'a.png')
    write_xml(tmp_path / 'a.xml', voc_object('cat', (1, 1, 9, 9)), width=80, height=60)
    with pytest.raises(AnnotationError, match=r'a\.xml:3: .*40 x 30.*80 x 60'):
        voc(tmp_path, tmp_path / 'out.json')


def test_yolo_boxes_and_counts(yolo, tmp_path):
    images, labels, out = tmp_path / 'images' / 'train', tmp_path / 'labels' / 'train', tmp_path / 'train.json'
    save_image(images / 'a.png')
    save_image(images / 'b.png')
    labels.mkdir(parents=True)
    (labels / 'a.txt').write_text('1 0.5 0.5 1 1\n\n0 0 0.5 0.5 0.2\n0 0.5 0.5 0 0.1\n0 -0.5 0.5 0.5 0.5\n')
    (labels / 'lost.txt').write_text('')
    (labels / 'classes.txt').write_text('cat\ndog\n')

    counts = yolo(images, out, parse_classes(str(labels / 'classes.txt')))
    content = json.loads(out.read_text())

    assert [annotation['bbox'] for annotation in content['annotations']] == [[0, 0, 40, 30], [0, 12, 10, 6]]
    assert [annotation['category_id'] for annotation in content['annotations']] == [2, 1]
    assert counts == {
        'images': 2,
        'boxes read': 4,
        'boxes clipped': 1,
        'boxes written': 2,
        'txt files dropped, no image': 1,
        'boxes dropped, empty': 1,
        'boxes dropped, outside the image': 1,
        'images without a txt file': 1,
        'images without boxes': 1,
    }


@pytest.mark.parametrize(
    ('line', 'reason'),
    [('0 0.5 0.5 0.1', '4 fields'), ('0 0.5 x 0.1 0.1', "'0 0.5 x 0.1 0.1'"), ('2 0.5 0.5 0.1 0.1', 'class 2')]
    + [('0 20 15 8 8', 'pixels'), ('0 0.5 0.5 -0.1 0.1', 'fractions'), ('0 nan 0.5 0.1 0.1', 'fractions')],
)
def test_yolo_names_file_and_line(yolo, tmp_path, line, reason):
    save_image(tmp_path / 'a.png')
    (tmp_path / 'a.txt').write_text(f'0 0.5 0.5 0.1 0.1\n{line}\n')
    with pytest.raises(AnnotationError, match=reason) as caught:
        yolo(tmp_path, tmp_path / 'out.json', ['cat', 'dog'])
    assert str(caught.value).startswith(f'{tmp_path / "a.txt"}:2: ')


def test_images_count_as_training_reads_them(yolo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save_image(tmp_path / 'a.jpg', exif=exif)
    (tmp_path / 'a.txt').write_text('0 0.5 0.5 1 1\n')
    yolo(tmp_path, tmp_path / 'out.json', ['cat'])
    image = json.loads((tmp_path / 'out.json').read_text())['images'][0]
    assert (image['width'], image['height']) == (30, 40)


def test_nothing_to_convert_is_an_error(voc, yolo, tmp_path):
    with pytest.raises(AnnotationError, match='no image'):
        yolo(tmp_path, tmp_path / 'out.json', ['cat'])
    save_image(tmp_path / 'a.png')
    with pytest.raises(AnnotationError, match='xml'):
        voc(tmp_path, tmp_path / 'out.json')
    with pytest.raises(AnnotationError, match='txt'):
        yolo(tmp_path, tmp_path / 'out.json', ['cat'])
    save_image(tmp_path / 'a.jpg')
    with pytest.raises(AnnotationError, match='differ only in the extension'):
        yolo(tmp_path, tmp_path / 'out.json', ['cat'])
    (tmp_path / 'a.jpg').unlink()
    (tmp_path / 'a.png').write_bytes(b'no image')
    with pytest.raises(AnnotationError, match=r'a\.png'):
        yolo(tmp_path, tmp_path / 'out.json', ['cat'], labels=write_xml(tmp_path / 'x' / 'a.txt', '').parent)


def test_class_names_of_a_command_line(tmp_path):
    assert parse_classes('person, traffic light') == ['person', 'traffic light']
    (tmp_path / 'data.yaml').write_text('names: {1: dog, 0: cat}\n')
    assert parse_classes(str(tmp_path / 'data.yaml')) == ['cat', 'dog']
    with pytest.raises(AnnotationError, match='cat more than once'):
        parse_classes('cat,dog,cat')
    with pytest.raises(AnnotationError, match='no class'):
        parse_classes(' , ')


@pytest.mark.parametrize('tool', ['voc_to_coco.py', 'yolo_to_coco.py'])
def test_command_line(load_tool, tool, tmp_path, monkeypatch, capsys):
    save_image(tmp_path / 'a.png')
    write_xml(tmp_path / 'a.xml', voc_object('cat', (1, 1, 20, 15)))
    (tmp_path / 'a.txt').write_text('0 0.25 0.25 0.5 0.5\n')
    out = tmp_path / 'out.json'
    monkeypatch.setattr(sys, 'argv', [tool, '--images', str(tmp_path), '--classes', 'cat', '--out', str(out)])
    main = load_tool(f'dataset_converters/{tool}').main
    main()
    assert '1 boxes written' in capsys.readouterr().out
    assert json.loads(out.read_text())['annotations'][0]['bbox'] == [0, 0, 20, 15]

    (tmp_path / 'a.xml').write_text('<annotation>')
    (tmp_path / 'a.txt').write_text('cat 1 2 3 4')
    with pytest.raises(SystemExit, match=r'^error: .*a\.(xml|txt):1: '):
        main()
