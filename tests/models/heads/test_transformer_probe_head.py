import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn


def build(**kwargs):
    torch.manual_seed(0)
    head = MODELS.build(
        dict(type='TransformerProbeHead', num_classes=3, in_channels=6, embed_dims=16, num_heads=2) | kwargs
    )
    head.init_weights()
    return head.eval()


def test_one_block_uses_the_positions_and_their_order_matters():
    head, features = build(), torch.randn(2, 6, 4, 4)
    mirrored = features.flip(3)
    assert (head((features,)) - head((mirrored,))).abs().max() > 1e-6
    nn.init.zeros_(head.embed.weight)  # nothing but positions is left
    nn.init.zeros_(head.embed.bias)
    tokens = []
    head.layers.register_forward_hook(lambda module, args, out: tokens.append(args[0]))
    head((features,))
    assert len(torch.unique(tokens[0][0].round(decimals=4), dim=0)) == 16


def test_positions_follow_rows_and_columns_where_the_map_is_not_square():
    head = build()
    nn.init.zeros_(head.embed.weight)
    nn.init.zeros_(head.embed.bias)
    tokens = []
    head.layers.register_forward_hook(lambda module, args, out: tokens.append(args[0]))
    head((torch.randn(1, 6, 2, 5),))
    position = tokens[0][0].view(2, 5, 2, 8)  # row, column, and the halves of the embedding
    outer, inner = position.unbind(2)
    torch.testing.assert_close(outer, outer[:, :1].expand_as(outer))  # one half tells the row alone
    torch.testing.assert_close(inner, inner[:1].expand_as(inner))  # the other the column alone
    assert (outer[0] - outer[1]).abs().max() > 0.1
    assert (inner[:, 0] - inner[:, 1]).abs().max() > 0.1


def test_positions_see_each_other():
    """What sets tran-1 apart from a linear probe: one position changes what is read from another."""
    head = build()
    outs = []
    head.layers.register_forward_hook(lambda module, args, out: outs.append(out))
    features = torch.randn(1, 6, 4, 4)
    changed = features.clone()
    changed[..., 0, 0] += 1
    head((features,))
    head((changed,))
    assert (outs[0][0, -1] - outs[1][0, -1]).abs().max() > 1e-5


def test_blocks_heads_and_width_are_arguments():
    head = build(depth=4, num_heads=4, embed_dims=32)
    assert len(head.layers) == 4
    assert head.layers[0].attn.num_heads == 4
    assert head((torch.randn(2, 6, 3, 3),)).shape == (2, 3)


@pytest.mark.parametrize('depth', [0, 13])
def test_more_or_fewer_blocks_than_make_sense_are_refused(depth):
    with pytest.raises(ValueError, match=rf'depth={depth} is no probe; 1 to 12'):
        build(depth=depth)


@pytest.mark.parametrize(('embed_dims', 'num_heads'), [(18, 4), (18, 2)])
def test_a_width_that_does_not_fit_is_refused(embed_dims, num_heads):
    with pytest.raises(ValueError, match=rf'embed_dims=18 must be a multiple of num_heads={num_heads}'):
        build(embed_dims=embed_dims, num_heads=num_heads)
