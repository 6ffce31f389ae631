"""What hooks ask of any runner of mmengine, also one without a dataloader or with several optimizers."""

from __future__ import annotations

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner


def optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    """All of them; a GAN has several."""
    whole = runner.optim_wrapper
    return list(whole.values()) if isinstance(whole, OptimWrapperDict) else [whole]


def batch_size(runner: Runner) -> int | None:
    """Samples of a training batch in each process; None where the loader is a plain list, as in vis_scheduler.py."""
    loader = runner.train_dataloader
    sampler = getattr(loader, 'batch_sampler', None)  # mmdet's batches by aspect ratio have the size there
    return getattr(loader, 'batch_size', None) or getattr(sampler, 'batch_size', None)
