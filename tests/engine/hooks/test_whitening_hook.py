"""WhiteningHook sets the statistics of the training data, once."""

from types import SimpleNamespace

import pytest
import torch
from helpers.models import frozen_classifier_config
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmpretrain.registry import MODELS

from qbheat_mm.engine.hooks.whitening_hook import fit_whitening


def build_model(*neck: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.build(frozen_classifier_config(*neck)).train()


def build_loader(images: torch.Tensor) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader([dict(inputs=image) for image in images], batch_size=64)


IMAGES = torch.rand(192, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 10
WHITENING = dict(type='Whitening', in_channels=[20], eps=0)


def run_hook(model, iter=0, num_samples=192):
    hook = HOOKS.build(dict(type='WhiteningHook', num_samples=num_samples))
    logger = MMLogger.get_instance('whitening', logger_name='whitening')
    hook.before_train(SimpleNamespace(iter=iter, model=model, train_dataloader=build_loader(IMAGES), logger=logger))


def test_features_are_white_after_the_hook():
    # In train mode the BatchNorm after it would update its own statistics.
    model = build_model(WHITENING, dict(type='ClsBatchNormNeck', input_features=20))
    run_hook(model)
    assert model.training
    assert not model.neck[2].bn.running_mean.any()
    with torch.no_grad():
        (white,) = model.neck[1](model.neck[0](model.backbone(IMAGES)))
    torch.testing.assert_close(white.mean(0), torch.zeros(20), atol=1e-2, rtol=0)
    torch.testing.assert_close(white.mT.cov(correction=0), torch.eye(20), atol=2e-2, rtol=0)


def test_the_number_of_samples_is_rounded_up_to_whole_batches():
    assert fit_whitening(build_model(WHITENING), build_loader(IMAGES), num_samples=65) == 128


def test_a_resumed_run_keeps_its_statistics():
    model = build_model(WHITENING)
    run_hook(model, iter=5)
    assert model.neck[1].layers[0].mean.isnan().all()


def test_a_model_without_whitening_is_refused():
    with pytest.raises(ValueError, match=r'has no Whitening\. Add one to model\.neck'):
        run_hook(build_model())


def test_features_that_do_not_vary_are_refused():
    model = build_model(WHITENING)
    with pytest.raises(ValueError, match='do not vary'):
        fit_whitening(model, build_loader(torch.zeros(8, 3, 32, 32)), 8)
