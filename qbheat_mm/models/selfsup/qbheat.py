"""QB-Heat: encode one quarter, extrapolate its features linearly to the other three, decode pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from ...arguments import check_arguments
from ...datasets.transforms.quarter_mask import whole_quarter_sizes
from ..heads.qbheat_head import gather_runs


@MODELS.register_module()
class QBHeat(BaseSelfSupervisor):
    """`Self-Supervised Learning based on Heat Equation <https://arxiv.org/abs/2211.13228>`_.

    Args:
        backbone: Any backbone of mmpretrain with a spatial output; it sees the visible quarter alone.
        neck: ``HeatNeck``.
        head: ``QBHeatPretrainHead``.
        img_size: Side of the square images in pixels.
        feature_index: Which of the backbone's outputs is extrapolated.
        data_preprocessor: Defaults to mmpretrain's ``SelfSupDataPreprocessor``.
        init_cfg: Initialization.

    Raises:
        ValueError: If the backbone cannot encode a quarter of ``img_size`` to whole features, or the parts do not fit.
    """

    @check_arguments('img_size')
    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        img_size: int = 224,
        feature_index: int = -1,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        stride = head.get('patch_size')
        if not isinstance(stride, int) or isinstance(stride, bool) or stride <= 0:
            raise ValueError(f'QBHeat: head.patch_size={stride!r} must be a number of pixels, the output stride.')
        if img_size % (2 * stride):
            raise ValueError(
                f'img_size={img_size} does not divide into quarters of whole {stride}-px features '
                f'(head.patch_size={stride}); '
                f'{whole_quarter_sizes(img_size, stride)} would do.'
            )
        head = dict(head, img_size=img_size)
        super().__init__(backbone, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.img_size = img_size
        self.stride = stride
        self.feature_index = feature_index
        self._try_quarter()

    def loss(self, inputs: Tensor, data_samples: list[DataSample], **kwargs) -> dict[str, Tensor]:
        """The masked reconstruction loss.

        Args:
            inputs: (N, 3, H, W), normalized, H = W = ``img_size``.
            data_samples: Each with ``visible_origin``, from ``QuarterMask``.

        Returns:
            ``loss``, and what else the neck or head adds by name.
        """
        origin = self._origins(inputs, data_samples)
        latent = self.encode_visible(inputs, origin)
        features = self.neck(latent, origin)
        return self.head.loss(features, inputs, self._hidden(origin)) | self.neck.losses()

    def encode_visible(self, inputs: Tensor, origin: Tensor) -> Tensor:
        """(N, 3, H, W) and the blocks' places (N, 2) -> features (N, C, h, w) of the visible block alone."""
        visible = crop_quarter(inputs, origin, self.stride)
        return self.backbone(visible)[self.feature_index]

    def forward(self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'):
        """As in every self-supervised model, and ``mode='predict'``, see :meth:`predict`."""
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return super().forward(inputs, data_samples, mode)

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """Reconstruct images from one quarter.

        Args:
            inputs: (N, 3, H, W), normalized.
            data_samples: Each with ``visible_origin``.

        Returns:
            The samples with ``reconstruction`` (3, H, W), pixel values of 0 to 255 in the channel order of the
            normalized input, the visible quarter copied in, and the metrics ``masked_loss`` and ``constant_loss``
            (the best constant per patch).
        """
        origin = self._origins(inputs, data_samples)
        masked = self._masked(origin)
        pred = self.head(self.neck(self.encode_visible(inputs, origin), origin))
        masked_loss, constant_loss = self.head.sample_losses(pred, inputs, masked)
        pixels = self.head.to_pixels(pred, inputs)
        hidden = masked.view(len(masked), 1, *[self.img_size // self.stride] * 2).float()
        pixels = torch.where(F.interpolate(hidden, scale_factor=self.stride) > 0, pixels, inputs.float())
        pixels = self.to_pixels(pixels).clamp(0, 255)
        for i, sample in enumerate(data_samples):
            sample.set_field(pixels[i], 'reconstruction')
            sample.set_field(float(masked_loss[i]), 'masked_loss', field_type='metainfo')
            sample.set_field(float(constant_loss[i]), 'constant_loss', field_type='metainfo')
        return data_samples

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """Undo the data preprocessor's normalization: (N, 3, H, W) -> values of 0 to 255."""
        if not self.data_preprocessor._enable_normalize:
            return inputs
        return inputs * self.data_preprocessor.std + self.data_preprocessor.mean

    def _origins(self, inputs: Tensor, data_samples: list[DataSample]) -> Tensor:
        if tuple(inputs.shape[-2:]) != (self.img_size, self.img_size):
            raise ValueError(
                f'QBHeat was built for {self.img_size} px (img_size) but the pipeline gives '
                f'{inputs.shape[-1]} x {inputs.shape[-2]} px images.'
            )
        if not all('visible_origin' in sample for sample in data_samples):
            raise KeyError(
                "QBHeat needs `visible_origin`: put QuarterMask into the pipeline and 'visible_origin' into the "
                'meta_keys of PackInputs.'
            )
        origin = torch.tensor([sample.visible_origin for sample in data_samples])
        return origin.to(inputs.device, non_blocking=True)  # a blocking copy would wait for the device

    def _masked(self, origin: Tensor) -> Tensor:
        """(N, 2) -> (N, L), True where a cell of the map is hidden."""
        cells = self.img_size // self.stride
        offset = torch.arange(cells, device=origin.device) - origin[..., None]  # (N, 2, cells)
        inside = (offset >= 0) & (offset < cells // 2)
        return ~(inside[:, 0, :, None] & inside[:, 1, None, :]).flatten(1)

    def _hidden(self, origin: Tensor) -> Tensor:
        """(N, 2) -> (N, 3 L / 4), the positions of the hidden cells in ascending order."""
        masked = self._masked(origin)
        # Three quarters are hidden wherever the block lies: known to the host without a look at the mask.
        return masked.byte().argsort(dim=1, descending=True, stable=True)[:, : masked.shape[1] * 3 // 4]

    @torch.no_grad()
    def _try_quarter(self) -> None:
        """Run one empty quarter, so that what does not fit is refused when the model is built, not in training."""
        quarter, cells = self.img_size // 2, self.img_size // 2 // self.stride
        name = type(self.backbone).__name__
        training = self.backbone.training
        self.backbone.eval()  # not chained: mmpretrain's backbones return None
        try:
            features = self.backbone(torch.zeros(1, 3, quarter, quarter))
        except Exception as error:
            raise ValueError(
                f'{name} cannot encode a quarter of {quarter} x {quarter} px: {error}. A backbone for one size of '
                f'image alone (fixed position embeddings, say) must be built for the quarter, img_size={quarter}.'
            ) from error
        self.backbone.train(training)
        if not -len(features) <= self.feature_index < len(features):
            raise ValueError(f'QBHeat: feature_index={self.feature_index}, but {name} has {len(features)} output(s).')
        feature = features[self.feature_index]
        if not isinstance(feature, Tensor) or feature.ndim != 4:
            found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(
                f'{name} gives {found} for a quarter; QBHeat needs a feature map (N, C, h, w). Look for an option like '
                "out_type='featmap' (transformers) or gap_before_final_norm=False (ConvNeXt)."
            )
        if tuple(feature.shape[2:]) != (cells, cells):
            raise ValueError(
                f'{name} turns a quarter of {quarter} px into {feature.shape[3]} x {feature.shape[2]} features, but '
                f'patch_size={self.stride} of the head wants {cells} x {cells}: give the head the stride of the '
                f'output feature_index={self.feature_index}, or the backbone another output (out_indices, '
                'output_stride).'
            )
        wanted = {
            'neck.in_channels': self.neck.in_channels,
            'head.decoder.in_channels': self.head.decoder.in_channels,
        }
        for field, channels in wanted.items():
            if channels != feature.shape[1]:
                raise ValueError(f'{name} gives {feature.shape[1]} channels, but {field}={channels}.')


def crop_quarter(images: Tensor, origin: Tensor, stride: int) -> Tensor:
    """Cut a quarter out of each image, without a loop or a host synchronisation.

    Args:
        images: (N, C, H, W).
        origin: (N, 2), row and column of the quarter's top left cell.
        stride: Side of a cell in pixels.

    Returns:
        (N, C, H / 2, W / 2).
    """
    count, channels, height, width = images.shape
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1, 1)
    rows = origin[:, 0, None] * stride + torch.arange(height // 2, device=images.device)
    columns = origin[:, 1, None] + torch.arange(width // 2 // stride, device=images.device)
    return gather_runs(images, planes, rows[:, None, :, None], columns[:, None, None, :], stride).flatten(3)
