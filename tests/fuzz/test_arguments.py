"""Odd values in every argument of every registered class: it is built, or what is raised names the field and value."""

import inspect
import math
import traceback
from copy import deepcopy

import pytest
import torch
from helpers.coco import write_coco
from helpers.models import TINY_ARCH, own_classes, qbheat_config
from mmengine.model import BaseModule

pytestmark = pytest.mark.fuzz

ODD = [
    *(None, True, -1, 0, 1, 1.5, 10**12, -(10**30), math.nan, math.inf, -math.inf, 1e-300, '', 'odd', 'nonsense', b'x'),
    *(
        [],
        [0],
        [-1, 1],
        ['strange'],
        [10**12],
        (),
        (1, 2),
        {},
        dict(type='nonsense'),
        dict(type=3),
        dict(other=1),
        {1, 2},
        object,
    ),
    *(float, lambda: 1, torch.ones(2), [None], [math.nan], [[]], 'long' * 80),
]
DATASET = dict(type='ImageFolderDataset', data_root='photos', with_label=False)
HEAD = dict(type='LinearClsHead', num_classes=2, in_channels=4)
NEEDED = dict(
    AtomicCheckpointHook=dict(save_best='accuracy'),
    DrawRandomFlip=dict(prob=0.5),
    FeatureDataset=dict(folder='nowhere'),
    HeatNeck=dict(in_channels=4),
    KnnHook=dict(bank=DATASET, queries=DATASET),
    LRSweepHead=dict(head=HEAD, lrs=(0.1, 0.2)),
    ImageFolderDataset=dict(data_root='photos', with_label=False, lazy_init=True),
    LoadReducedRandomResizedCrop=dict(scale=8),
    MobileFormer=dict(arch=TINY_ARCH),
    MobileFormerClsHead=dict(num_classes=2, in_channels=4, token_dims=4, hidden_channels=4),
    PackedImageDataset=dict(data_root='photos', with_label=False, lazy_init=True),
    QBHeat={key: value for key, value in qbheat_config().items() if key != 'type'},
    QBHeatDecoder=dict(in_channels=4, out_channels=4, embed_dims=12),
    QBHeatPretrainHead=dict(loss=dict(type='PixelReconstructionLoss', criterion='L2')),
    ReconstructionHook=dict(images='photos'),
    TorchRandomResizedCrop=dict(scale=8),
    TransformerProbeHead=dict(num_classes=2, in_channels=4, embed_dims=16),
    Whitening=dict(in_channels=(4,)),
)
PLAIN = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def arguments_of(component) -> list[str]:
    parameters = dict(inspect.signature(component.__init__).parameters)
    return [name for name, each in parameters.items() if name != 'self' and each.kind in PLAIN]


# Others have stock arguments; the wrapper needs a process group.
OWN = [
    component
    for component in own_classes()
    if '__init__' in vars(component) and component.__name__ != 'CPUDistributedDataParallel'
]
CASES = [(component, name) for component in OWN for name in arguments_of(component)]


def named_by(text: str, component, name: str, value) -> bool:
    """Whether a message names the field or another one, or the text in its value."""
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return any(each in text for each in (name, *arguments_of(component), *parts) if isinstance(each, str) and each)


@pytest.fixture
def fitting(tmp_path):
    """Arguments with which each component is built."""
    coco = write_coco(tmp_path / 'coco') / 'annotations' / 'instances_val2017.json'
    return lambda component: (
        deepcopy(NEEDED.get(component.__name__, {}))
        | (dict(ann_file=str(coco)) if component.__name__ == 'CocoBBoxMetric' else {})
    )


@pytest.mark.parametrize(('component', 'name'), CASES, ids=lambda each: getattr(each, '__name__', each))
def test_a_component_is_built_or_the_field_is_named(component, name, fitting):
    for odd in deepcopy(ODD):
        try:
            built = component(**(fitting(component) | {name: odd}))
            if isinstance(built, BaseModule):
                built.init_weights()
        except (ValueError, KeyError, OSError, TypeError, AssertionError) as error:
            text, raised_in = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
        else:
            continue
        assert named_by(text, component, name, odd), (odd, text)
        assert len(text) < 1500
        assert '/torch/' not in raised_in, (odd, text)


@pytest.mark.parametrize('component', OWN, ids=lambda each: each.__name__)
def test_the_arguments_of_the_sweep_fit(component, fitting):
    if component.__name__ not in ('FeatureDataset', 'KnnHook'):  # need data
        component(**fitting(component))


def test_the_sweep_reaches_every_argument_of_ours():
    assert len(CASES) > 90
