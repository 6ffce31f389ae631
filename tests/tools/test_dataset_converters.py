import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qbheat_mm.datasets.coco import AnnotationError, parse_classes

XML = """<annotation>
  <filename>a.png</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>
{objects}
</annotation>"""


def save_image(path: Path, width: int = 40, height: int = 30, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **options)


def voc_object(name: str, *box: float, difficult: int = 0) -> str:
    corners = '<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>'.format(*box)
    return f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>'


def xml(*objects: str, width: int = 40, height: int = 30) -> str:
    return XML.format(width=width, height=height, objects=''.join(objects))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_xml(path: Path, *objects: str) -> Path:
    return write(path, xml(*objects))


def each(content: dict, section: str, field: str) -> list:
    return [entry[field] for entry in content[section]]


@pytest.fixture
def voc(load_tool):
    return load_tool('dataset_converters/voc_to_coco.py').voc_to_coco


@pytest.fixture
def yolo(load_tool):
    return load_tool('dataset_converters/yolo_to_coco.py').yolo_to_coco


def test_voc_boxes_counts_and_classes(voc, tmp_path):
    images, xmls, out = tmp_path / 'images', tmp_path / 'xml', tmp_path / 'out' / 'train.json'
    for name in ('a', 'sub/b', 'c'):
        save_image(images / f'{name}.png')
    write_xml(
        xmls / 'a.xml',
        voc_object('dog', 1, 1, 40, 30),  # VOC's corners are pixels, from 1: the whole image
        voc_object('cat', 11, 6, 20, 10, difficult=1),
        voc_object('cat', -3, 5, 10, 50),  # clipped
        voc_object('cat', 50, 5, 60, 10),  # outside
        voc_object('cat', 20, 5, 10, 10),  # empty
    )
    write_xml(xmls / 'sub' / 'b.xml')
    write_xml(xmls / 'lost.xml')

    counts = voc(images, out, xmls)
    content = json.loads(out.read_text())

    assert each(content, 'categories', 'name') == ['cat', 'dog']
    assert each(content, 'images', 'file_name') == ['a.png', 'sub/b.png']
    assert each(content, 'annotations', 'bbox') == [[0, 0, 40, 30], [10, 5, 10, 5], [0, 4, 10, 26]]
    assert each(content, 'annotations', 'category_id') == [2, 1, 1]
    assert each(content, 'annotations', 'iscrowd') == [0, 1, 0]
    assert each(content, 'annotations', 'id') == [1, 2, 3]
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
        write_xml(images / f'{name}.xml', voc_object('cat', 1, 1, 9, 9), voc_object('dog', 1, 1, 9, 9))
    split.write_text('c\na  1\n')

    counts = voc(images, out, classes=['dog', 'bird'], split=split, root=tmp_path / 'images', zero_based=True)
    content = json.loads(out.read_text())

    assert each(content, 'images', 'file_name') == ['train/c.png', 'train/a.png']
    assert each(content, 'categories', 'name') == ['dog', 'bird']
    assert set(each(content, 'annotations', 'category_id')) == {1}
    assert counts['boxes dropped, class "cat" not asked for'] == 2
    assert content['annotations'][0]['bbox'] == [1, 1, 8, 8]

    split.write_text('a\nzebra\n')
    with pytest.raises(AnnotationError, match='zebra'):
        voc(images, tmp_path / 'other.json', split=split)


def test_yolo_boxes_and_counts(yolo, tmp_path):
    images, labels, out = tmp_path / 'images' / 'train', tmp_path / 'labels' / 'train', tmp_path / 'train.json'
    for name in 'ab':
        save_image(images / f'{name}.png')
    write(labels / 'a.txt', '1 0.5 0.5 1 1\n\n0 0 0.5 0.5 0.2\n0 0.5 0.5 0 0.1\n0 -0.5 0.5 0.5 0.5\n')
    write(labels / 'lost.txt', '')
    write(labels / 'classes.txt', 'cat\ndog\n')

    counts = yolo(images, out, parse_classes(str(labels / 'classes.txt')))
    content = json.loads(out.read_text())

    assert each(content, 'annotations', 'bbox') == [[0, 0, 40, 30], [0, 12, 10, 6]]
    assert each(content, 'annotations', 'category_id') == [2, 1]
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


FINE = '0 0.5 0.5 0.1 0.1\n'


@pytest.mark.parametrize(
    ('tool', 'text', 'line', 'reason'),
    [
        ('voc', xml(width=80, height=60), 3, '40 x 30.*80 x 60'),
        ('voc', xml('<object><name>cat</name>\n<bndbox></object>'), 5, 'well-formed'),
        ('voc', '<?xml version="1.0"?>\n<annotations/>', 2, 'its root is <annotations>; VOC has <annotation>'),
        ('voc', xml('\n\n<object><name>cat</name></object>'), 6, 'bndbox'),
        ('voc', xml('<object><bndbox>\n<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax></bndbox></object>'), 4, 'ymax'),
        ('voc', xml(voc_object('cat', 1, 2, 3, 4)).replace('<xmax>3<', '<xmax>three<'), 4, 'three'),
        ('voc', xml(voc_object('', 1, 2, 3, 4)), 4, 'name'),
        ('yolo', f'{FINE}0 0.5 0.5 0.1', 2, '4 fields'),
        ('yolo', f'{FINE}0 0.5 x 0.1 0.1', 2, "'0 0.5 x 0.1 0.1'"),
        ('yolo', f'{FINE}2 0.5 0.5 0.1 0.1', 2, 'class 2'),
        ('yolo', f'{FINE}0 20 15 8 8', 2, 'pixels'),
        ('yolo', f'{FINE}0 0.5 0.5 -0.1 0.1', 2, 'fractions'),
        ('yolo', f'{FINE}0 nan 0.5 0.1 0.1', 2, 'fractions'),
    ],
)
def test_file_and_line_are_named(request, tmp_path, tool, text, line, reason):
    save_image(tmp_path / 'a.png')
    path = write(tmp_path / ('a.xml' if tool == 'voc' else 'a.txt'), text)
    with pytest.raises(AnnotationError, match=reason) as caught:
        request.getfixturevalue(tool)(tmp_path, tmp_path / 'out.json', classes=['cat', 'dog'])
    assert str(caught.value).startswith(f'{path}:{line}: ')
    assert not (tmp_path / 'out.json').exists()


def test_images_have_the_size_that_training_reads(yolo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save_image(tmp_path / 'a.jpg', exif=exif)
    (tmp_path / 'a.txt').write_text('0 0.5 0.5 1 1\n')
    yolo(tmp_path, tmp_path / 'out.json', ['cat'])
    image = json.loads((tmp_path / 'out.json').read_text())['images'][0]
    assert (image['width'], image['height']) == (30, 40)


def test_nothing_to_convert_is_an_error(voc, yolo, tmp_path):
    out = tmp_path / 'out.json'
    with pytest.raises(AnnotationError, match='no image'):
        yolo(tmp_path, out, ['cat'])
    save_image(tmp_path / 'a.png')
    with pytest.raises(AnnotationError, match='xml'):
        voc(tmp_path, out)
    with pytest.raises(AnnotationError, match='txt'):
        yolo(tmp_path, out, ['cat'])
    save_image(tmp_path / 'a.jpg')
    with pytest.raises(AnnotationError, match='differ only in the extension'):
        yolo(tmp_path, out, ['cat'])
    (tmp_path / 'a.jpg').unlink()
    (tmp_path / 'a.png').write_bytes(b'no image')
    with pytest.raises(AnnotationError, match=r'a\.png'):
        yolo(tmp_path, out, ['cat'], labels=write(tmp_path / 'x' / 'a.txt', '').parent)


def test_class_names_of_a_command_line(tmp_path, monkeypatch):
    assert parse_classes('person, traffic light') == ['person', 'traffic light']
    assert parse_classes(str(write(tmp_path / 'data.yaml', 'names: {1: dog, 0: cat}\n'))) == ['cat', 'dog']
    assert parse_classes(str(write(tmp_path / 'data.yml', 'names: [cat, 7]\n'))) == ['cat', '7']
    assert parse_classes(','.join(f'class number {i}' for i in range(200)))[199] == 'class number 199'
    (tmp_path / 'cat').mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_classes('cat') == ['cat']  # not the folder
    with pytest.raises(AnnotationError, match='cat more than once'):
        parse_classes('cat,dog,cat')
    with pytest.raises(AnnotationError, match='no class'):
        parse_classes(' , ')


LAUGHS = '\n'.join(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 10))
MERGES = '\n'.join(f'a{i}: &a{i} {{<<: [{", ".join([f"*a{i - 1}"] * 9)}]}}' for i in range(1, 10))


@pytest.mark.parametrize(
    ('name', 'content', 'reason'),
    [
        ('data.yaml', "names: !!python/object/apply:os.mkdir ['{ran}']", 'could not determine a constructor'),
        ('data.yaml', f'a0: &a0 [cat]\n{LAUGHS}\nnames: *a9', 'aliases'),
        ('data.yaml', f'a0: &a0 {{0: cat}}\n{MERGES}\nnames: *a9', 'aliases'),
        ('data.yaml', 'names: [[cat], dog]', 'number 1 is list, not text'),
        ('data.yaml', 'names: [cat, no]', 'number 2 is bool, not text; write it in quotes'),
        ('data.yaml', 'names: {1: cat, 2: dog}', 'not 0, 1, ..., 1'),
        ('data.yaml', 'names: {cat: 0}', 'not 0, 1, ..., 0'),
        ('data.yaml', 'names: 7', 'no "names" that are a list'),
        ('data.yaml', '- cat', 'no "names" that are a list'),
        ('data.yaml', 'names: ' + '[' * 5000, 'plain YAML'),
        ('data.yaml', 'names: [2024-99-99]', 'plain YAML'),
        ('data.yaml', '#' * 2**21, '2097152 bytes, at most 1048576'),
        ('names.txt', 'cat\n' * 2**19, '2097152 bytes, at most 1048576'),
        ('names.txt', 'cat\n\ndog\n', 'number 2 is empty'),
        ('names.txt', 'größe'.encode('latin-1'), 'not a text file in UTF-8'),
        ('lost.yaml', None, 'No such file'),
    ],
)
def test_a_list_of_classes_that_is_none_is_refused(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(
            content if isinstance(content, bytes) else content.replace('{ran}', f'{tmp_path}/ran').encode()
        )
    with pytest.raises(AnnotationError, match=re.escape(reason)) as error:
        parse_classes(str(path))
    assert name in str(error.value)
    assert len(str(error.value)) < 1000
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_text_files_as_windows_writes_them(yolo, tmp_path, encoding):
    (tmp_path / 'names.txt').write_text('cat\r\ndog\r\n', encoding)
    (tmp_path / 'data.yaml').write_text('names: [cat, dog]\r\n', encoding)
    for name in ('names.txt', 'data.yaml'):
        assert parse_classes(str(tmp_path / name)) == ['cat', 'dog']
    save_image(tmp_path / 'images' / 'a.png')
    (tmp_path / 'images' / 'a.txt').write_text('1 0.5 0.5 1 1\r\n', encoding)
    assert yolo(tmp_path / 'images', tmp_path / 'out.json', ['cat', 'dog'])['boxes written'] == 1


@pytest.mark.parametrize(
    ('stated', 'encoding'),
    [
        ('', 'utf-8'),
        ('', 'utf-8-sig'),
        ('', 'utf-16'),
        ('UTF-8', 'utf-8'),
        ('utf-8', 'utf-8-sig'),
        ('utf-16', 'utf-16'),
        ('utf-16', 'utf-8'),
        ('GBK', 'gbk'),
        ('gb2312', 'gb2312'),
        ('big5', 'big5'),
        ('Shift_JIS', 'shift_jis'),
        ('euc-kr', 'euc-kr'),
        ('ISO-8859-1', 'latin-1'),
        ('windows-1252', 'cp1252'),
        ('KOI8-R', 'koi8-r'),
    ],
)
def test_xml_in_the_encoding_that_it_states(voc, tmp_path, stated, encoding):
    name = {'shift_jis': '猫', 'euc-kr': '고양이', 'koi8-r': 'кот', 'latin-1': 'größe', 'cp1252': 'größe'}.get(
        encoding, '中文'
    )
    text = f'<?xml version="1.0" encoding="{stated}"?>\n' if stated else ''
    save_image(tmp_path / 'a.png')
    (tmp_path / 'a.xml').write_bytes((text + xml(voc_object(name, 1, 1, 20, 15))).encode(encoding))
    voc(tmp_path, tmp_path / 'out.json')
    assert each(json.loads((tmp_path / 'out.json').read_text()), 'categories', 'name') == [name]


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (
            xml(voc_object('中文', 1, 1, 2, 2)).encode('gbk'),
            'not in utf-8-sig .* save it as UTF-8, or state its encoding',
        ),
        (xml(voc_object('größe', 1, 1, 2, 2)).encode('latin-1'), 'save it as UTF-8, or state its encoding'),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', 'the unknown encoding "klingon"; save it as UTF-8'),
        (b'<?xml version="1.0" encoding="zip"?><a/>', 'the unknown encoding "zip"'),
        (b'version https://git-lfs.github.com/spec/v1', 'git-LFS, not the file itself; run `git lfs pull`'),
        (b'', 'it is empty, or holds zeros alone'),
    ],
)
def test_xml_in_another_encoding_is_named_with_the_remedy(voc, tmp_path, content, reason):
    save_image(tmp_path / 'a.png')
    (tmp_path / 'a.xml').write_bytes(content)
    with pytest.raises(AnnotationError, match=rf'a\.xml.*{reason}'):
        voc(tmp_path, tmp_path / 'out.json')


def test_a_pointer_is_no_text(yolo, tmp_path):
    save_image(tmp_path / 'a.png')
    write(tmp_path / 'a.txt', 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n')
    with pytest.raises(AnnotationError, match=r'a\.txt: it looks like a pointer of git-LFS.*git lfs pull'):
        yolo(tmp_path, tmp_path / 'out.json', ['cat'])


def test_fifos_are_no_files(voc, yolo, tmp_path):
    for name in ('classes', 'b.png', 'a.xml', 'a.txt'):
        os.mkfifo(tmp_path / name)
    save_image(tmp_path / 'a.png')
    with pytest.raises(AnnotationError, match='Not a regular file'):
        parse_classes(str(tmp_path / 'classes'))
    with pytest.raises(AnnotationError, match='Not a regular file'):
        voc(tmp_path, tmp_path / 'out.json', split=tmp_path / 'classes')
    for convert in (voc, yolo):
        with pytest.raises(AnnotationError, match='No image'):
            convert(tmp_path, tmp_path / 'out.json', classes=['cat'])


def test_a_message_is_one_line(yolo, tmp_path):
    save_image(tmp_path / 'a.png')
    write(tmp_path / 'a\nerror: b.txt', '0 0.5 0.5 1 1')
    (tmp_path / 'a.png').rename(tmp_path / 'a\nerror: b.png')
    write(tmp_path / 'a\nerror: b.txt', 'x')
    with pytest.raises(AnnotationError, match=r'a\\nerror: b\.txt:1') as error:
        yolo(tmp_path, tmp_path / 'out.json', ['cat'])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('tool', ['voc_to_coco.py', 'yolo_to_coco.py'])
def test_command_line(load_tool, tool, tmp_path, monkeypatch, capsys):
    save_image(tmp_path / 'a.png')
    write_xml(tmp_path / 'a.xml', voc_object('cat', 1, 1, 20, 15))
    write(tmp_path / 'a.txt', '0 0.25 0.25 0.5 0.5\n')
    out = tmp_path / 'out.json'
    monkeypatch.setattr(sys, 'argv', [tool, '--images', str(tmp_path), '--classes', 'cat', '--out', str(out)])
    main = load_tool(f'dataset_converters/{tool}').main
    main()
    assert '1 boxes written' in capsys.readouterr().out
    assert json.loads(out.read_text())['annotations'][0]['bbox'] == [0, 0, 20, 15]

    with pytest.raises(SystemExit, match=r'^error: .*out\.json" exists already'):
        main()
    out.unlink()
    write(tmp_path / 'a.xml', '<annotation>')
    write(tmp_path / 'a.txt', 'cat 1 2 3 4')
    with pytest.raises(SystemExit, match=r'^error: .*a\.(xml|txt):1: '):
        main()
