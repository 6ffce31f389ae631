"""QB-Heat for MMPretrain and MMDetection. Importing it registers every component."""

from . import compat

compat.apply()

from . import datasets, evaluation, models  # noqa: E402, I001
from . import engine  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['__version__', 'datasets', 'engine', 'evaluation', 'models']
