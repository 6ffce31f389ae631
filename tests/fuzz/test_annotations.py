"""Malformed annotation files: the data train, or a message names the file."""

import json
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.coco import coco_content, detection_pipeline
from helpers.fuzzing import FUZZ
from helpers.models import write_images
from hypothesis import event, given
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from qbheat_mm.datasets.coco import AnnotationError, read_classes
from qbheat_mm.datasets.coco_validation import check_coco

pytest.importorskip('mmdet')
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample

pytestmark = pytest.mark.fuzz

COCO = coco_content(
    {'000.jpg': [(1, (4, 4, 20, 30), 0), (2, (30.5, 10, 20, 30), 0)], '001.jpg': [(1, (0, 0, 64, 64), 0)]},
    size=(64, 64),
    categories={1: 'cat', 2: 'dog'},
    first_id=0,
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**9, 10**400, -(10**9), 1e308, float('nan'), float('inf'), -0.5, 1e-9]),
    st.sampled_from(['', 'cat', '1', '../../etc/passwd', '000.jpg', '\x00', '\ud800', 'x' * 5000]),
    st.sampled_from(
        [[], {}, [1, 2], [1, 2, 3, 4], ['a'] * 4, [None] * 4, [[1, 2, 3, 4]], dict(counts=[1], size=[1, 1])]
    ),
)


def places(node, path=()):
    """Every place in nested lists and dicts."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def coco_files(draw) -> bytes:
    """The annotations above with up to three entries changed, removed or duplicated, or the text truncated."""
    content = deepcopy(COCO)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from([each for each in places(content) if each]))
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        how = draw(st.sampled_from(['set', 'set', 'remove', 'double']))
        if how == 'set':
            parent[place[-1]] = deepcopy(draw(VALUES))  # a shared list could come to contain itself
        elif how == 'remove':
            del parent[place[-1]]
        elif isinstance(parent, list):
            parent.append(deepcopy(parent[place[-1]]))
    try:
        text = json.dumps(content).encode('utf-8', 'surrogatepass')
    except ValueError:  # more digits than Python writes
        text = b'{"images": [' + b'9' * 5000
    if draw(st.integers(0, 9)) == 0:
        text = text[: draw(st.integers(0, len(text)))] + draw(st.binary(max_size=3))
    return text


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('images')
    write_images(folder, 2)
    return folder


@FUZZ
@given(content=coco_files(), classes=st.sampled_from([None, ('cat', 'dog'), ('dog',), 'cat', ('cat', 'cat'), ()]))
def test_coco_annotations_load_or_are_reported(images, content, classes):
    init_default_scope('mmdet')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'annotations.json'
        path.write_bytes(content)
        try:
            read_classes(path)
        except AnnotationError as error:
            assert 'annotations.json' in str(error)  # noqa: PT017
        report = check_coco(path, images, classes)
        assert all(text and len(text) < 5000 for text in report.errors)
        if report.errors:
            return
        metainfo = dict(classes=classes or read_classes(path))
        dataset = DATASETS.build(
            dict(
                type='CocoDataset',
                ann_file=str(path),
                data_prefix=dict(img=str(images)),
                metainfo=metainfo,
                filter_cfg=dict(filter_empty_gt=False, min_size=32),
                pipeline=detection_pipeline(32),
                serialize_data=False,  # serialization collects garbage each time
            )
        )
        for i in range(len(dataset)):
            instances = dataset[i]['data_samples'].gt_instances
            assert torch.isfinite(instances.bboxes.tensor).all()
            assert (instances.labels >= 0).all()
            assert (instances.labels < len(metainfo['classes'])).all()


NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 2**31, 2**53 - 1, 2**53, 2**64, 10**400])
TEXTS = st.sampled_from(['', '0', '1', 'a', 'a\0', 'ü', 'x' * 40, '5f3e1c2a-0000'])
ODD = st.sampled_from([True, False, 1.0, 0.5, None, [1]])


def ids(count: int) -> st.SearchStrategy[list]:
    """Ids of one kind, or mixed."""
    kinds = st.sampled_from(
        [NUMBERS, st.integers(1, 30), st.integers(1, 30), TEXTS, TEXTS, st.one_of(NUMBERS, TEXTS, ODD)]
    )
    return kinds.flatmap(lambda kind: st.lists(kind, min_size=count, max_size=count, unique_by=repr))


@st.composite
def coco_contents(draw) -> dict:
    """Sound images, boxes and names; ids, crowds, areas and flags of many kinds."""
    images, categories = draw(ids(2)), draw(ids(2))
    count = draw(st.integers(1, 6))
    annotations = []
    for id_ in draw(st.one_of(st.just(list(range(1, count + 1))), ids(count))):
        x, y, w, h = (draw(st.integers(low, high)) for low, high in ((0, 30), (0, 30), (1, 34), (1, 34)))
        annotation = dict(id=id_, bbox=[x, y, w, h], area=w * h * draw(st.sampled_from([1, 1, 0.5, 1e7])))
        annotation.update(image_id=draw(st.sampled_from(images)), category_id=draw(st.sampled_from(categories)))
        annotation['iscrowd'] = draw(st.sampled_from([0, 0, 0, 0, 1, False, True, 2, 256]))
        if draw(st.integers(0, 9)) == 0:
            annotation['ignore'] = draw(st.sampled_from([0, 1, True]))
        annotations.append(annotation)
    return dict(
        images=[dict(id=id_, file_name=f'{i:03d}.jpg', width=64, height=64) for i, id_ in enumerate(images)],
        categories=[dict(id=id_, name=name) for id_, name in zip(categories, ('cat', 'dog'))],
        annotations=annotations,
    )


def perfect_ap(ann_file: Path, classes: tuple[str, ...], metric: str) -> float:
    """The AP of what mmdet's dataset holds as the truth."""
    dataset = DATASETS.build(
        dict(
            type='CocoDataset',
            ann_file=str(ann_file),
            data_prefix=dict(img=''),
            metainfo=dict(classes=classes),
            test_mode=True,
            pipeline=[],
        )
    )
    evaluator = Evaluator([dict(type=metric, ann_file=str(ann_file))])
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        truth = [each for each in info['instances'] if not each['ignore_flag']]
        sample = DetDataSample(metainfo=dict(img_id=info['img_id'], ori_shape=(64, 64)))
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([each['bbox'] for each in truth], dtype=torch.float32).reshape(-1, 4),
            scores=torch.ones(len(truth)),
            labels=torch.tensor([each['bbox_label'] for each in truth], dtype=torch.long),
        )
        evaluator.process([sample])
    return evaluator.evaluate(len(dataset))['coco/bbox_mAP']


@FUZZ
@given(content=coco_contents())
def test_perfect_detections_have_an_ap_of_one(images, content):
    """In every file that the check passes, with our metric and mmdet's."""
    init_default_scope('mmdet')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'annotations.json'
        path.write_text(json.dumps(content))
        report = check_coco(path, images)
        event('refused' if report.errors else 'passed')
        if not report.errors:
            for metric in ('CocoBBoxMetric', 'CocoMetric'):
                assert perfect_ap(path, ('cat', 'dog'), metric) == pytest.approx(1, abs=1e-6), metric


VOC = """<annotation><size><width>64</width><height>64</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>24</xmax><ymax>34</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>31.5</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
</annotation>
"""
YOLO = '0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.1 0.1\n'
PIECES = st.sampled_from(
    [
        '',
        '-1',
        '0',
        '1e400',
        'nan',
        'inf',
        '-0.5',
        '9' * 40,
        'cat',
        '\x00',
        '\udcff',
        '<',
        '</object>',
        '&a;',
        '\n',
        '1 ' * 9,
    ]
)


@st.composite
def changed_texts(draw, text: str) -> bytes:
    """``text`` with pieces of it replaced or removed."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(PIECES) + text[end:]
    return text.encode('utf-8', 'surrogateescape')


@pytest.mark.parametrize(('tool', 'text', 'suffix'), [('voc_to_coco', VOC, '.xml'), ('yolo_to_coco', YOLO, '.txt')])
def test_other_formats_convert_to_what_loads_or_name_the_file(images, load_tool, tool, text, suffix):
    convert = getattr(load_tool(f'dataset_converters/{tool}.py'), tool)

    @FUZZ
    @given(contents=st.tuples(changed_texts(text), changed_texts(text)))
    def check(contents):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            for i, content in enumerate(contents):
                (folder / f'{i:03d}{suffix}').write_bytes(content)
            options = dict(annotations=folder) if suffix == '.xml' else dict(labels=folder, classes=['cat', 'dog'])
            try:
                convert(images, folder / 'out.json', **options)
            except AnnotationError as error:
                assert any(f'{i:03d}{suffix}' in str(error) for i in range(2)) or 'class' in str(error)  # noqa: PT017
                assert not (folder / 'out.json').exists()
            else:
                report = check_coco(folder / 'out.json', images)
                assert all(
                    'no annotation to train on' in each or 'thin' in each or 'name' in each for each in report.errors
                ), report.errors

    check()
