"""Configs with odd values: the model trains a step, or what is raised names the field."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers.fuzzing import FUZZ
from helpers.models import qbheat_config, samples_at
from hypothesis import given
from hypothesis import strategies as st
from mmpretrain.registry import MODELS, TRANSFORMS

pytestmark = pytest.mark.fuzz

FIELDS = [
    ('patch_size',),
    *(('backbone', name) for name in ('arch', 'out_indices', 'output_stride', 'frozen_stages', 'drop_path_rate')),
    *(('backbone', 'arch', name) for name in ('stem_channels', 'token_dims', 'num_tokens', 'blocks', 'groups')),
    *(('backbone', 'arch', 'blocks', i) for i in range(3)),
    *(('neck', name) for name in ('in_channels', 'scheme', 'direction', 'commute')),
    *(('head', name) for name in ('norm_pix', 'loss', 'no_such_field')),
    *(('decoder', name) for name in ('in_channels', 'out_channels', 'mixer', 'embed_dims', 'depth', 'num_heads')),
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([64, 100, 224]),
    st.floats(-2, 20),
    st.sampled_from([float('nan'), float('inf')]),
    st.sampled_from(['', 'euler', 'exp', 'none', 'local', '294m', 'signed', '16', 'x' * 300]),
    st.sampled_from([[], {}, [1], (0, 1), ['a'], dict(type='L1Loss'), (2, 8, 1, 0), (2, 8, 3, 0), (2, 8, 2, 2, 1)]),
)


@FUZZ
@given(changes=st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=2))
def test_a_model_trains_a_step_or_the_field_is_named(changes):
    config = deepcopy(qbheat_config())
    touched = set()
    for place, value in changes:
        parent = config
        for key in place[:-1]:
            inner = parent[key] if isinstance(parent, (dict, list)) and not isinstance(parent, str) else None
            if isinstance(key, str) and not isinstance(inner, (dict, list)):
                break
            parent = inner
        else:
            if isinstance(parent, (list, dict)):
                parent[place[-1]] = value
            touched.add(str(place[-1]) if isinstance(place[-1], str) else place[-2])
    torch.manual_seed(0)
    try:
        model = MODELS.build(config)
        losses = model.loss(torch.randn(2, 3, 64, 64), samples_at([(0, 0), (0, 0)]))
    except (ValueError, KeyError) as error:
        text = str(error)
        assert len(text) < 1500
        assert any(name in text for name in touched), (text, touched)
        return
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


@FUZZ
@given(values=st.fixed_dictionaries({}, optional=dict(patch_size=VALUES, visible=VALUES)))
def test_quarter_mask_masks_or_names_the_field(values):
    try:
        mask = TRANSFORMS.build(dict(values, type='QuarterMask'))
        row, column = mask(dict(img=np.empty((64, 64, 3), np.uint8)))['visible_origin']
    except ValueError as error:
        assert any(name in str(error) for name in values)  # noqa: PT017
        return
    block = 32 // mask.patch_size
    assert 0 <= row <= block
    assert 0 <= column <= block
