"""QB-Heat for MMPretrain and MMDetection. Importing it registers its components and its models."""

from . import compat

compat.apply()

from . import datasets, evaluation, models  # noqa: E402, I001
from . import engine  # noqa: E402
from .apis.model_index import register_models  # noqa: E402
from .version import __version__  # noqa: E402

register_models()

__all__ = ['__version__', 'datasets', 'engine', 'evaluation', 'models']
