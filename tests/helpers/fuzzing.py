"""The settings of all fuzz tests."""

import os

from hypothesis import HealthCheck, settings

# The same cases every time; FUZZ_EXAMPLES=20 for a quick run.
FUZZ = settings(
    max_examples=int(os.environ.get('FUZZ_EXAMPLES', '300')),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
