"""Images for small runs."""

import pytest
from helpers.models import write_images


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of eight images, which tests leave as it is."""
    folder = tmp_path_factory.mktemp('images')
    write_images(folder, 8)
    return folder
