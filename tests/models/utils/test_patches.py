import itertools

import numpy as np
import pytest
import torch
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.models.utils import build_2d_sincos_position_embedding

from qbheat_mm.models.utils import (
    crop_quarter,
    gather_patches,
    gather_tokens,
    masked_cells,
    normalize_patches,
    patchify,
    sincos_position_embedding,
    unpatchify,
)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_crop_quarter_is_slicing(memory_format):
    images = torch.randn(3, 3, 16, 32).to(memory_format=memory_format)
    origin = torch.tensor([[0, 0], [4, 8], [2, 3]])
    blocks = crop_quarter(images, origin, patch_size=2)
    for image, (row, column), block in zip(images, 2 * origin, blocks):
        assert torch.equal(block, image[:, row : row + 8, column : column + 16])


@pytest.mark.parametrize(('height', 'width'), [(4, 4), (4, 6)])
def test_masked_cells_are_the_rest_of_the_map(height, width):
    for row, column in itertools.product(range(height // 2 + 1), range(width // 2 + 1)):
        expected = np.ones((height, width), bool)
        expected[row : row + height // 2, column : column + width // 2] = False
        (found,) = masked_cells(torch.tensor([[row, column]]), (height, width))
        assert np.array_equal(found.numpy(), np.flatnonzero(expected))


def test_patchify_is_maes_channel_by_channel_and_unpatchify_its_inverse(generator):
    images = torch.randn(2, 3, 32, 32, generator=generator)
    head = MAEPretrainHead(dict(type='PixelReconstructionLoss', criterion='L2'), patch_size=8)
    patches = patchify(images, 8)
    assert torch.equal(patches, head.patchify(images).unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2))
    assert torch.equal(unpatchify(patches, (32, 32), 8), images)
    wide = torch.randn(2, 3, 16, 32, generator=generator)
    assert torch.equal(unpatchify(patchify(wide, 8), (16, 32), 8), wide)


def test_gathering_is_indexing_a_whole_patchify(generator):
    images = torch.randn(2, 3, 16, 32, generator=generator)
    ids = torch.tensor([[3, 0, 7], [5, 5, 1]])
    patches = patchify(images, 8)
    expected = torch.stack([each[index] for each, index in zip(patches, ids)])
    assert torch.equal(gather_tokens(patches, ids), expected)
    assert torch.equal(gather_patches(images, ids, 8), expected)


@pytest.mark.parametrize('contrast', [1.0, 1e-3, 0.0])
def test_normalization_is_maes(contrast, generator):
    images = 2 + contrast * torch.randn(2, 3, 32, 32, dtype=torch.double, generator=generator)
    head = MAEPretrainHead(dict(type='PixelReconstructionLoss', criterion='L2'), norm_pix=True, patch_size=8)
    wanted = head.construct_target(images).unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(normalize_patches(patchify(images, 8)), wanted)
    single = normalize_patches(patchify(images.float(), 8)).double()
    torch.testing.assert_close(single, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(('height', 'width'), [(4, 4), (3, 5)])
def test_position_embedding_is_mmpretrains(height, width):
    ours = sincos_position_embedding((height, width), 16, torch.device('cpu'))
    # mmpretrain's grid runs over its first length outermost, hence width before height for maps flattened by rows.
    torch.testing.assert_close(ours, build_2d_sincos_position_embedding((width, height), 16), rtol=1e-6, atol=1e-6)
