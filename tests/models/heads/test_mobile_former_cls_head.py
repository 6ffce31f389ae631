import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import qbheat_mm  # noqa: F401


def build(**kwargs):
    arguments = dict(num_classes=5, in_channels=8, token_dims=12, hidden_channels=16) | kwargs
    torch.manual_seed(0)
    return MODELS.build(dict(type='MobileFormerClsHead', **arguments))


FEATS = (torch.randn(3, 8, 4, 6), torch.randn(3, 2, 12))


def test_depends_on_features_and_first_token_alone():
    head = build().eval()
    features, tokens = FEATS
    logits = head((torch.randn(3, 4, 9, 9), features, tokens))
    assert logits.shape == (3, 5)
    assert torch.allclose(head((features.flip(-1), tokens)), logits, atol=1e-6)  # pooled
    other = tokens.clone()
    other[:, 1] += 1
    assert torch.equal(head((features, other)), logits)
    other[:, 0] += 1
    assert not torch.allclose(head((features, other)), logits)


def test_groups_shuffle_before_the_convolution():
    """The second of four groups reads the second pair of the shuffled channels."""
    head = build(groups=4).eval()
    weight = head.expand[1].weight
    assert weight.shape == (48, 2, 1, 1)
    x = torch.randn(1, 8, 3, 3)
    expected = F.conv2d(torch.stack([x[:, 2 * (k % 4) + k // 4] for k in range(8)], 1)[:, 2:4], weight[12:24])
    assert torch.allclose(head.expand[:2](x)[:, 12:24], expected, atol=1e-6)


def test_trains_on_labels_and_scores_and_predicts():
    head = build(dropout=0.5, topk=(1, 5), cal_acc=True)
    samples = [DataSample().set_gt_label(i) for i in range(3)]
    losses = head.loss(FEATS, samples)
    assert set(losses) == {'loss', 'accuracy_top-1', 'accuracy_top-5'}
    losses['loss'].backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    soft = [DataSample().set_gt_score(torch.full((5,), 0.2)) for _ in range(3)]
    assert build(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')).loss(FEATS, soft)['loss'] > 0
    head.eval()
    predictions = head.predict(FEATS)
    logits = head(FEATS)
    assert [int(sample.pred_label) for sample in predictions] == logits.argmax(1).tolist()


def test_a_backbone_without_tokens_is_refused():
    with pytest.raises(ValueError, match='set out_tokens=True of the backbone'):
        build()((torch.randn(2, 8, 4, 4),))
    with pytest.raises(ValueError, match=r'got \(2, 4, 8, 8\), \(2, 8, 4, 4\)'):
        build()((torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)))
