"""QB-Heat: encode one quarter, extrapolate its features linearly to the other three, decode the masked patches."""

from __future__ import annotations

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from ...arguments import Component, InitConfig, Size, check_arguments
from ...datasets.transforms.quarter_mask import check_quarters, visible_origins
from ..utils import check_feature_map, crop_quarter, gather_patches, gather_tokens, masked_cells


@MODELS.register_module()
class QBHeat(BaseSelfSupervisor):
    """`Self-Supervised Learning based on Heat Equation <https://arxiv.org/abs/2211.13228>`_.

    One quarter of the image is encoded alone; its features are extrapolated linearly, z(x + dx, y) = (I + dx A) z and
    z(x, y + dy) = (I + dy B) z, to the other three quarters; a decoder predicts their pixels. A *cell* is a position of
    the feature map, ``patch_size`` pixels wide; the visible quarter has h x w of them, the whole image L = 4hw.

    Args:
        backbone: Any backbone of mmpretrain whose last output is a feature map; it sees the visible quarter alone.
        neck: ``HeatNeck``, from the features of the quarter to those of the whole image.
        decoder: ``QBHeatDecoder``, from features to one prediction per position.
        head: ``QBHeatPretrainHead``, targets and loss.
        patch_size: Side in pixels of the patch that belongs to one feature: the backbone's output stride.
        target_generator: Makes targets (N, L, V) of all positions from the images, as in mmpretrain's MaskFeat; one
            that gives an image (N, 3, H, W) changes the pixels that are predicted. Defaults to pixels, the paper's
            target.
        data_preprocessor: Defaults to mmpretrain's ``SelfSupDataPreprocessor``.
        init_cfg: Initialization.

    Raises:
        ValueError: If neck and decoder do not have the same channels.
    """

    @check_arguments
    def __init__(
        self,
        backbone: Component,
        neck: Component,
        decoder: Component,
        head: Component,
        patch_size: Size = 16,
        target_generator: Component | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(backbone, neck, head, target_generator, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.decoder = MODELS.build(decoder)
        self.patch_size = patch_size
        channels, expected = self.decoder.in_channels, self.neck.in_channels
        if channels != expected:
            raise ValueError(f'QBHeat: decoder.in_channels={channels}, but neck.in_channels={expected}.')

    def loss(self, inputs: Tensor, data_samples: list[DataSample], **kwargs) -> dict[str, Tensor]:
        """The loss on the masked quarters: ``loss``, and what the neck adds by name.

        Args:
            inputs: (N, 3, H, W), normalized.
            data_samples: Each with ``visible_origin``, from ``QuarterMask``.
        """
        pred, masked_ids = self.predict_masked(inputs, data_samples)
        return self.head.loss(pred, self.target(inputs, masked_ids)) | self.neck.losses()

    def predict_masked(self, inputs: Tensor, data_samples: list[DataSample]) -> tuple[Tensor, Tensor]:
        """The method: predictions at the masked positions (N, 3L/4, V), and their indices (N, 3L/4) among all L."""
        check_quarters(inputs.shape[2:], self.patch_size)
        origin = visible_origins(data_samples, inputs.device)  # (N, 2), cells
        visible = crop_quarter(inputs, origin, self.patch_size)  # (N, 3, H/2, W/2)
        latent = self.encode(visible)  # (N, C, h, w)
        features = self.neck(latent, origin)  # (N, C, 2h, 2w)
        masked_ids = masked_cells(origin, features.shape[2:])  # (N, 3L/4)
        return self.decoder(features, masked_ids), masked_ids

    def encode(self, visible: Tensor) -> Tensor:
        """Visible quarters (N, 3, H/2, W/2) -> features (N, C, h, w), h = H/2 / ``patch_size``."""
        latent = self.backbone(visible)[-1]
        check_feature_map(self.backbone, visible, latent, self.neck.in_channels, self.patch_size)
        return latent

    def target(self, inputs: Tensor, masked_ids: Tensor) -> Tensor:
        """Targets (N, 3L/4, V) at the masked positions: pixels, or what the target generator makes."""
        targets = inputs if self.target_generator is None else self.target_generator(inputs)
        if targets.ndim == 4:  # an image
            return gather_patches(targets, masked_ids, self.patch_size)
        return gather_tokens(targets, masked_ids)

    def forward(self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'):
        """As in every self-supervised model; ``mode='predict'`` see :meth:`predict`."""
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return super().forward(inputs, data_samples, mode)

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """What is predicted, and how well, for images (N, 3, H, W), normalized.

        Returns:
            The samples with ``pred`` (3L/4, V), ``masked_ids`` (3L/4,), and the metrics ``masked_loss`` and
            ``constant_loss`` (the best constant per position).
        """
        pred, masked_ids = self.predict_masked(inputs, data_samples)
        losses = self.head.sample_losses(pred, self.target(inputs, masked_ids))
        for i, sample in enumerate(data_samples):
            sample.set_field(pred[i].float(), 'pred')
            sample.set_field(masked_ids[i], 'masked_ids')
            for name, loss in zip(('masked_loss', 'constant_loss'), losses):
                sample.set_field(float(loss[i]), name, field_type='metainfo')
        return data_samples
