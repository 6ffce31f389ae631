"""Whether training and validation data mean the same by a label."""

from __future__ import annotations

from mmengine.dataset import BaseDataset


def check_classes(train: BaseDataset, val: BaseDataset, num_classes: int | None = None) -> None:
    """Compare the classes of two datasets, and their number with the head's.

    Labels of class folders are places in the sorted list of folders: with one folder more or less on one side, the
    labels of the other shift and the accuracy is meaningless, without any error.

    Args:
        train: Training data.
        val: Validation data.
        num_classes: What the head was built for; None leaves it out.

    Raises:
        ValueError: With the classes that differ, or both numbers.
    """
    classes, others = (tuple(each.metainfo.get('classes') or ()) for each in (train, val))
    if classes != others and classes and others:
        differences = [
            f'{where} lacks {", ".join(missing[:8])}{" ..." if len(missing) > 8 else ""}'
            for where, missing in (
                ('train', [name for name in others if name not in classes]),
                ('val', [name for name in classes if name not in others]),
            )
            if missing
        ]
        raise ValueError(
            f'Training and validation data do not have the same classes ({_place(train)}, {_place(val)}): '
            f'{"; ".join(differences) or "their order differs"}. Add or remove class folders; '
            'tools/dataset_converters/class_folders.py makes both from one folder.'
        )
    if num_classes is not None and classes and len(classes) != num_classes:
        raise ValueError(
            f'{_place(train)} has {len(classes)} classes and model.head.num_classes is {num_classes}. Set '
            f'NUM_CLASSES={len(classes)} for the _imagenette configs, or `--cfg-options '
            f'model.head.num_classes={len(classes)} model.data_preprocessor.num_classes={len(classes)}`.'
        )


def _place(dataset: BaseDataset) -> str:
    return str(getattr(dataset, 'img_prefix', '') or getattr(dataset, 'data_root', '') or type(dataset).__name__)
