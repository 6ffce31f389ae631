"""k-NN accuracy on a labeled subset during pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from pydantic import Field, PositiveFloat, PositiveInt

from ...arguments import Component, Size, Workers, check_arguments
from ...datasets.config_validation import check_classes
from ...evaluation.functional.knn import collect_features, knn_accuracy


@HOOKS.register_module()
class KnnHook(Hook):
    """Before training and after every n-th epoch, evaluate the features of the backbone by k-NN classification.

    Logs ``knn/top1_k<k>`` in %. Training does not use the labels and is bit-identical to training without the hook:
    the hook restores the random state.

    Args:
        bank: Config of the labeled dataset that holds the neighbors, without augmentation.
        queries: Config of the labeled dataset to classify.
        interval: Epochs between two evaluations.
        ks: Numbers of neighbors.
        temperature: Temperature of the votes.
        batch_size: Images at a time, per process.
        num_workers: Processes that read images.
    """

    @check_arguments
    def __init__(
        self,
        bank: Component,
        queries: Component,
        interval: PositiveInt = 10,
        ks: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (20, 200),
        temperature: PositiveFloat = 0.07,
        batch_size: Size = 128,
        num_workers: Workers = 2,
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
        """Build the loaders, which checks the data early, and evaluate the untrained model."""
        self.loaders = [Runner.build_dataloader(config, seed=0) for config in self._configs]
        check_classes(*(loader.dataset for loader in self.loaders))
        if runner.iter == 0:
            self._evaluate(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Evaluate every n-th epoch."""
        if self.every_n_epochs(runner, self.interval):
            self._evaluate(runner)

    def _evaluate(self, runner: Runner) -> None:
        runner.model.eval()
        with torch.random.fork_rng(devices=[]):  # a DataLoader takes a random seed when it starts
            bank, queries = (collect_features(runner.model, loader) for loader in self.loaders)
        runner.model.train()
        scalars = knn_accuracy(queries, bank, self.ks, self.temperature)
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(scalars, step=runner.iter)
        text = ', '.join(f'{name}: {value:.2f}' for name, value in scalars.items())
        runner.logger.info(f'Epoch(knn) [{runner.epoch + (runner.iter > 0)}] {text}')
