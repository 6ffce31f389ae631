import inspect
from collections.abc import Sequence

import pytest
from helpers.models import own_classes
from mmengine.config import ConfigDict

from qbheat_mm.arguments import Component, Size, check_arguments


class Part:
    @check_arguments
    def __init__(
        self, width: Size, rate: float = 0.0, names: Sequence[str] = (), free=None, other: Component | None = None
    ):
        self.width, self.other = width, other


@pytest.mark.parametrize(
    'arguments',
    [
        dict(width=1),
        dict(width=1, rate=1, names=['a'], free=object(), other=dict(type='A')),
        dict(width=2, rate=0.5, names=('a', 'b'), other=None),
    ],
)
def test_arguments_that_fit_pass(arguments):
    assert Part(**arguments).width == arguments['width']


def test_configs_are_handed_on_as_they_are():
    other = ConfigDict(type='A')
    assert Part(1, other=other).other is other


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(width=0), r'^Part: width=0: Input should be greater than 0$'),
        (dict(width=True), r'width=True: Input should be a valid integer'),
        (dict(width='1'), r"width='1': Input should be a valid integer"),
        (dict(width=10**12), r'width=1000000000000: Input should be less than or equal to 1048576'),
        (dict(width=1, rate=float('nan')), r'rate=nan: Input should be a finite number'),
        (dict(width=1, names=['a', 1]), r'names\[1\]=1: Input should be a valid string'),
        (dict(width=1, other=[]), r'other=\[\]: Input should be a valid dictionary'),
        (dict(width=1, other={}), r'other=\{\}: it names no type'),
        (dict(width=1, surplus=1), r'Part: surplus=1: Unexpected keyword argument'),
        (dict(), r'Part: width: Missing required argument'),
        (dict(width=1, names='x' * 300), r"names='x{79}\.\.\.: "),
        (dict(width='a', rate='b'), r"width='a': .*; rate='b': "),
    ],
)
def test_others_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Part(**arguments)


def test_arguments_by_place_are_named():
    with pytest.raises(ValueError, match=r"^Part: rate='x': Input should be a valid number$"):
        Part(1, 'x')


@pytest.mark.parametrize('component', own_classes(), ids=lambda component: component.__name__)
def test_every_registered_class_checks_its_arguments(component):
    init = vars(component).get('__init__')
    takes_none = init is None or list(inspect.signature(init).parameters) == ['self']
    assert takes_none or hasattr(init, '__wrapped__')
