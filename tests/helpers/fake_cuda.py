"""Models on a CUDA device that does not exist: shapes, dtypes and devices are computed, values are not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

SMALL = 64  # elements


class HostReads(TorchDispatchMode):
    """What the host reads from fakes, as ``item()`` does.

    Small tensors that follow from constants, like the sizes of feature maps, keep their values. An element of any other
    is 0 or False.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            with no_dispatch():
                return self.value(args[0] if self.is_known(args[0]) else torch.zeros((), dtype=args[0].dtype)).item()
        outputs = func(*args, **kwargs)
        found = tree_leaves(outputs)
        if not all(isinstance(each, Tensor) and each.numel() <= SMALL for each in found):
            return outputs  # nearly all: this is fast
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if inputs and all(map(self.is_known, inputs)):
            self.follow(func, args, kwargs, found)
        return outputs

    def is_known(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, FakeTensor) or tensor in self.values

    def value(self, tensor: object) -> object:
        return self.values.get(tensor, tensor) if isinstance(tensor, Tensor) else tensor

    def follow(self, func, args, kwargs, outputs: list[Tensor]) -> None:
        """Compute the values of the outputs, on the CPU."""
        args, kwargs = tree_map(self.value, (args, kwargs))
        if 'device' in kwargs:
            kwargs['device'] = torch.device('cpu')
        with no_dispatch():
            values = tree_flatten(func(*args, **kwargs))[0]
        self.values.update(zip(outputs, values, strict=True))


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made within are fakes, on the CPU or on ``cuda``; an operation that mixes them raises."""

    def shape_as_tensor(tensor: Tensor) -> Tensor:  # reads the memory of its result in C++
        return torch.tensor(tensor.shape)

    with FakeTensorMode(), HostReads(), patch.object(torch, '_shape_as_tensor', shape_as_tensor):
        yield


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast('cuda', dtype)``, which switches itself off where there is no GPU; not for float32."""
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', dtype != torch.float32)
    torch.set_autocast_dtype('cuda', dtype)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled('cuda', before[0])
        torch.set_autocast_dtype('cuda', before[1])


def to_fake_cuda(model: nn.Module) -> nn.Module:
    """A copy of the model as ``model.cuda()`` would leave it, made within :func:`fake_cuda`.

    Tensors that are neither parameters nor buffers stay as they are, and raise where they are used.
    """

    def fake(tensor: Tensor) -> Tensor:
        there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device='cuda')
        return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there

    moved = {id(tensor): fake(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with no_dispatch():
        copied = copy.deepcopy(model, moved)
    for module in copied.modules():
        if isinstance(module, BaseDataPreprocessor):
            module._device = torch.device('cuda')
    return copied
