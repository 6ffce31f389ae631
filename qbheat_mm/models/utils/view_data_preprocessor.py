"""Views of whole images, made on the device."""

from __future__ import annotations

from mmpretrain.models import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor

from .resample import blur, crop_images, jitter_color, make_gray


@MODELS.register_module()
class ViewDataPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's ``SelfSupDataPreprocessor``, which first makes the views that were drawn in the workers.

    It takes the batches of ``collate_views``, and any other as its base class does. On a CPU, crops have the bits of
    ``TorchRandomResizedCrop``; on a GPU, pixels differ by rounding.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Crop, augment and normalize.

        Returns:
            ``inputs``, (N, 3, H, W) or a list of them, one for each view; ``data_samples``.

        Raises:
            ValueError: If samples with views were collated by another function.
        """
        samples = data.get('data_samples') or [()]
        if 'view' not in samples[0] and 'views' not in samples[0]:
            return super().forward(data, training)
        data = self.cast_data(data)
        if getattr(data['inputs'], 'ndim', 0) != 1:
            raise ValueError(
                "ViewDataPreprocessor: the loader of packed images needs collate_fn=dict(type='collate_views')."
            )
        shapes = [sample.whole_shape for sample in samples]
        if 'view' in samples[0]:
            inputs = make_view(data['inputs'], shapes, [sample.view for sample in samples])
        else:
            inputs = [make_view(data['inputs'], shapes, views) for views in zip(*(each.views for each in samples))]
        return super().forward(dict(inputs=inputs, data_samples=samples), training)


def make_view(pixels: Tensor, shapes: list[tuple[int, int]], views: list[dict]) -> Tensor:
    """One view of each image.

    Args:
        pixels: Bytes of all images (H, W, 3), one after the other.
        shapes: Height and width of each image.
        views: What ``DrawRandomResizedCrop`` and the transforms beside it drew.

    Returns:
        (N, 3, H, W), whole numbers from 0 to 255.
    """

    def drawn(name: str, default=None) -> list:
        return [view.get(name, default) for view in views]

    size, mode = views[0]['size'], views[0]['interpolation']
    images = crop_images(pixels, shapes, drawn('box'), drawn('flip', False), size, mode)
    if any({'jitter', 'gray', 'blur'} & view.keys() for view in views):
        images = jitter_color(images.float(), drawn('jitter', ()))
        images = blur(make_gray(images, drawn('gray')), drawn('blur'))
    return images
