"""Watch a pre-training learn: k-NN accuracy on a labeled subset, every few epochs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...datasets.config_validation import check_classes
from ...evaluation.functional.knn import extract_features, knn_accuracy


@HOOKS.register_module()
class KnnHook(Hook):
    """Before the first and after every n-th epoch, classify one labeled dataset by its neighbors in another.

    Logged as ``knn/top1_k<k>`` in %. Nothing learns from these labels, and the training goes on as it would without:
    no random number of it is used up.

    Args:
        bank: Config of the labeled dataset in which neighbors are looked up; without augmentation.
        queries: Config of the labeled dataset that is classified.
        interval: Epochs between two looks.
        ks: Numbers of neighbors.
        temperature: Of the votes.
        batch_size: Images at a time, per process.
        num_workers: Processes that read images.
    """

    def __init__(
        self,
        bank: dict,
        queries: dict,
        interval: int = 10,
        ks: Sequence[int] = (20, 200),
        temperature: float = 0.07,
        batch_size: int = 128,
        num_workers: int = 2,
    ) -> None:
        self.interval = interval
        self.ks = tuple(ks)
        self.temperature = temperature
        self._configs = [
            dict(
                batch_size=batch_size,
                num_workers=num_workers,
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
                dataset=dataset,
            )
            for dataset in (bank, queries)
        ]

    def before_train(self, runner: Runner) -> None:
        """Open the data, so that what is wrong with it shows now, and take a first look at an untrained model."""
        self.loaders = [Runner.build_dataloader(config, seed=0) for config in self._configs]
        check_classes(*(loader.dataset for loader in self.loaders))
        if runner.iter == 0:
            self._look(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Every n-th epoch."""
        if self.every_n_epochs(runner, self.interval):
            self._look(runner)

    def _look(self, runner: Runner) -> None:
        runner.model.eval()
        with torch.random.fork_rng(devices=[]):  # a data loader draws a seed when it starts
            bank, queries = (extract_features(runner.model, loader) for loader in self.loaders)
        runner.model.train()
        scalars = knn_accuracy(queries, bank, self.ks, self.temperature)
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(scalars, step=runner.iter)
        text = ', '.join(f'{name}: {value:.2f}' for name, value in scalars.items())
        runner.logger.info(f'Epoch(knn) [{runner.epoch + (runner.iter > 0)}] {text}')
