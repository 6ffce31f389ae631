"""mmpretrain's MoCo on a Mobile-Former: queue, momentum encoder, shuffling, in one process and in two."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from helpers.models import ROOT, TINY_ARCH
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS, init_default_scope
from mmpretrain.registry import MODELS

import qbheat_mm  # noqa: F401

BATCH = 8


def build(queue_len: int = 32, momentum: float = 0.001, **backbone):
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/mocov2_mobile-former-52m.py')
    cfg.model.update(queue_len=queue_len, momentum=momentum)
    cfg.model.backbone.update(arch=TINY_ARCH, **backbone)
    cfg.model.neck.update(in_channels=20, hid_channels=32)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.train()


def views(steps: int = 3) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(BATCH, 3, 64, 64, generator=generator) for _ in range(2)] for _ in range(steps)]


def keys_of(model) -> list[torch.Tensor]:
    """The normalized keys of each step, as the momentum encoder computes them."""
    keys = []
    model.encoder_k.register_forward_hook(
        lambda module, args, out: keys.append(torch.nn.functional.normalize(out[0], dim=1))
    )
    return keys


def test_keys_enter_the_queue_in_order_and_it_wraps_around():
    model = build(queue_len=2 * BATCH)
    initial, keys = model.queue.clone(), keys_of(model)
    shuffles = []
    randperm = torch.randperm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'randperm', lambda n: shuffles.append(randperm(n)) or shuffles[-1])
        for pair in views():
            model.loss(pair, [])
    keys = [each[shuffle.argsort()] for each, shuffle in zip(keys, shuffles)]  # as the images came
    assert any((shuffle != torch.arange(BATCH)).any() for shuffle in shuffles)
    torch.testing.assert_close(model.queue[:, :BATCH].T, keys[2])  # the third batch replaced the first
    torch.testing.assert_close(model.queue[:, BATCH:].T, keys[1])
    assert int(model.queue_ptr) == BATCH
    assert not torch.equal(initial, model.queue)


def test_the_momentum_encoder_follows_slowly_and_gets_no_gradient():
    model = build(momentum=0.25)
    first, second = views(2)
    model.loss(first, [])['loss'].backward()
    assert all(each.grad is None for each in model.encoder_k.parameters())
    assert model.backbone.stem[0].weight.grad.abs().max() > 0
    name = 'module.0.stem.0.weight'
    before = model.encoder_k.state_dict()[name].clone()
    assert torch.equal(before, model.backbone.stem[0].weight)  # it starts as a copy
    with torch.no_grad():
        model.backbone.stem[0].weight.add_(1.0)
    model.loss(second, [])
    torch.testing.assert_close(model.encoder_k.state_dict()[name], before + 0.25)


def test_the_configs_have_mocov2s_settings():
    cfg = Config.fromfile(ROOT / 'configs/mocov2/mocov2_mobile-former-285m_8xb32-coslr-200e_in1k.py')
    assert (cfg.model.queue_len, cfg.model.momentum, cfg.model.head.temperature) == (65536, 0.001, 0.2)
    assert cfg.train_dataloader.drop_last
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 256


def check(queue_len: int, batch_size: int, drop_last: bool = True, images: int = 100) -> None:
    hook: Hook = HOOKS.build(dict(type='QueueCheckHook'))
    loader = SimpleNamespace(batch_size=batch_size, drop_last=drop_last, dataset=range(images))
    hook.before_train(SimpleNamespace(model=SimpleNamespace(queue_len=queue_len), train_dataloader=loader))


def test_a_queue_that_the_batch_does_not_divide_is_refused_with_the_numbers(monkeypatch):
    check(4096, 128)
    with pytest.raises(ValueError, match=r'4096 is not .* 1 process\(es\) x 96 = 96; .*batch_size=64 would.*=4032'):
        check(4096, 96)
    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: 3)
    with pytest.raises(ValueError, match=r'3 process\(es\) x 32 = 96; no batch of 3 processes .*queue_len=4032'):
        check(4096, 32)


def test_a_smaller_last_batch_is_refused():
    check(64, 10 - 2, drop_last=False, images=80)
    with pytest.raises(ValueError, match=r'last batch of an epoch has 4 of 16 images.*drop_last=True'):
        check(64, 16, drop_last=False, images=100)


def train(model, wrapped, batches) -> list[float]:
    """A few steps of SGD; the mean loss over processes of each."""
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    losses = []
    for pair in batches:
        loss = wrapped(pair, [], mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def train_in_one_of_two(rank: int, folder: str) -> None:
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    model = build(norm_eval=True, momentum=0.1)
    share = [[view.chunk(2)[rank] for view in pair] for pair in views()]
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    torch.manual_seed(7)
    losses = torch.stack(train(model, wrapped, share))
    torch.distributed.all_reduce(losses)
    torch.save(dict(losses=losses / 2, state=model.state_dict()), f'{folder}/rank{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.start_processes(train_in_one_of_two, (str(tmp_path),), nprocs=2, start_method='fork')
    model = build(norm_eval=True, momentum=0.1)
    torch.manual_seed(7)
    losses = torch.stack(train(model, model, views()))
    assert losses.diff().abs().min() > 1e-3  # the model, its keys and the queue do change
    for rank in range(2):
        result = torch.load(tmp_path / f'rank{rank}.pth')
        torch.testing.assert_close(result['losses'], losses, rtol=0, atol=1e-4)
        torch.testing.assert_close(result['state']['queue_ptr'], model.queue_ptr)
        for name, value in result['state'].items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)
