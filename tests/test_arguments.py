from collections.abc import Sequence

import pytest

from qbheat_mm.arguments import check_arguments


class Part:
    @check_arguments('width')
    def __init__(self, width: int, rate: float = 0.0, names: Sequence[str] = (), free=None, other: dict | None = None):
        self.width = width


@pytest.mark.parametrize(
    'arguments',
    [
        dict(width=1),
        dict(width=1, rate=1, names=['a'], free=object(), other={}),
        dict(width=2, rate=0.5, names=('a', 'b'), other=None),
    ],
)
def test_arguments_that_fit_pass(arguments):
    assert Part(**arguments).width == arguments['width']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(width=0), r'Part: width=0 must be larger than 0'),
        (dict(width=True), r'width=True is not of type int'),
        (dict(width='1'), r"width='1' is not of type int"),
        (dict(width=1, rate=float('nan')), r'rate=nan is not of type float'),
        (dict(width=1, names=['a', 1]), r"names=\['a', 1\] is not of type Sequence\[str\]"),
        (dict(width=1, other=[]), r'other=\[\] is not of type dict or None'),
        (dict(width=1, surplus=1), r"Part: got an unexpected keyword argument 'surplus'"),
        (dict(), r"Part: missing a required argument: 'width'"),
        (dict(width=1, names='x' * 300), r"names='x{79}\.\.\. is not of type"),
    ],
)
def test_others_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Part(**arguments)
