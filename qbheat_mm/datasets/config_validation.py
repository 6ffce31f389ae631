"""Pre-flight validation of the datasets of a config, and of model and evaluator against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS, init_default_scope

from ..text import join_names
from .coco_validation import Report, check_coco


def _dataset_class(dataset: dict) -> type | None:
    from mmdet.registry import DATASETS  # pre-training does without mmdet

    kind = dataset.get('type')
    return kind if isinstance(kind, type) else DATASETS.get(kind)


def find_coco_datasets(dataset: dict) -> Iterator[dict]:
    """The configs of COCO datasets in that of a dataset, which may wrap others."""
    from mmdet.datasets import CocoDataset

    kind = _dataset_class(dataset)
    if kind is not None and issubclass(kind, CocoDataset):
        yield dataset
    for inner in [dataset.get('dataset'), *(dataset.get('datasets') or [])]:
        if isinstance(inner, dict):
            yield from find_coco_datasets(inner)


def _paths_and_classes(dataset: dict) -> tuple[Path, Path, Sequence[str]]:
    """Annotation file, folder of images and classes, as mmdet resolves them."""
    root = Path(dataset.get('data_root') or '')
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    classes = _dataset_class(dataset)._load_metainfo(dataset.get('metainfo'))['classes']
    return root / dataset.get('ann_file', ''), root / prefix, classes


def _loader(dataset: dict) -> BaseTransform | None:
    """The transform of a dataset that loads images; None if there is none."""
    for step in dataset.get('pipeline') or ():
        if 'LoadImage' in str(step['type']):
            return TRANSFORMS.build(step)
    return None


def _check_evaluator(evaluator: dict | list | None, ann_file: Path) -> list[str]:
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator or {}]
    files = [metric['ann_file'] for metric in metrics if metric.get('ann_file')]
    return [
        f'the evaluator reads "{file}", the dataset "{ann_file}"'
        for file in files
        if Path(file).resolve() != ann_file.resolve()
    ]


def check_config(cfg: Config, splits: Sequence[str] = ('train', 'val', 'test'), sample: int = 200) -> Report:
    """Check every COCO dataset of a detection config, and that model and evaluator fit them.

    Args:
        cfg: The config.
        splits: The dataloaders to check.
        sample: Number of images of each dataset to decode.

    Returns:
        The findings, each with its split and file.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    num_classes = ((cfg.get('model') or {}).get('bbox_head') or {}).get('num_classes')
    report, checked, classes_of = Report(), [], {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in find_coco_datasets(loader['dataset']) if loader else ():
            ann_file, img_dir, classes = _paths_and_classes(dataset)
            found = Report()
            if split != 'train':
                found.errors += _check_evaluator(cfg.get(f'{split}_evaluator'), ann_file)
            if dataset not in checked:  # test usually equals val
                checked.append(dataset)
                remote = '://' in f'{dataset.get("data_root")}{ann_file}'
                skipped = Report(notes=['not on a local disk, so not checked'])
                found.add(
                    skipped if remote else check_coco(ann_file, img_dir, classes, sample, _loader(dataset)),
                    str(ann_file),
                )
            if not isinstance(classes, str):  # check_coco reports a string
                classes_of[tuple(classes)] = split
                if num_classes not in (None, len(classes)):
                    found.errors.append(
                        f'model.bbox_head.num_classes is {num_classes}, the dataset has {len(classes)} classes'
                    )
            report.add(found, split)
    if not checked:
        report.warnings.append('no COCO dataset in ' + ', '.join(f'{split}_dataloader' for split in splits))
    if len(classes_of) > 1:
        named = (f'{split} has {join_names(map(repr, classes), 20)}' for classes, split in classes_of.items())
        report.errors.append(f'the datasets have different classes: {"; ".join(named)}')
    return report


def check_classes(train: BaseDataset, val: BaseDataset, num_classes: int | None = None) -> None:
    """Compare the classes of two datasets, and their number with the head's.

    Labels of class folders are indices into the sorted list of folders: an extra folder on one side shifts the labels
    that follow, and the accuracy is silently meaningless.

    Args:
        train: Training data.
        val: Validation data.
        num_classes: Outputs of the head; None skips this comparison.

    Raises:
        ValueError: With the classes that differ, or both numbers.
    """
    classes, others = (tuple(each.metainfo.get('classes') or ()) for each in (train, val))
    if classes != others and classes and others:
        missing = dict(
            train=[name for name in others if name not in classes], val=[name for name in classes if name not in others]
        )
        differences = '; '.join(f'{where} lacks {join_names(names)}' for where, names in missing.items() if names)
        raise ValueError(
            f'Training and validation data do not have the same classes ({_location(train)}, {_location(val)}): '
            f'{differences or "their order differs"}. Add or remove class folders; '
            'tools/dataset_converters/class_folders.py makes both from one folder.'
        )
    if num_classes is not None and classes and len(classes) != num_classes:
        empty = getattr(train, 'empty_classes', [])
        junk = f' {join_names(empty)} without an image: remove what is no class.' if empty else ''
        raise ValueError(
            f'{_location(train)} has {len(classes)} classes and model.head.num_classes is {num_classes}.{junk} Set '
            f'NUM_CLASSES={len(classes)} for the _imagenette configs, or `--cfg-options '
            f'model.head.num_classes={len(classes)} model.data_preprocessor.num_classes={len(classes)}`.'
        )


def _location(dataset: BaseDataset) -> str:
    return str(getattr(dataset, 'img_prefix', '') or getattr(dataset, 'data_root', '') or type(dataset).__name__)
