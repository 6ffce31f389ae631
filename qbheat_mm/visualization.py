"""Images of reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TITLES = dict(original='original', visible='visible quarter', target='target', reconstruction='reconstruction')


def draw_reconstructions(results: Sequence[dict[str, np.ndarray]], rows: int | None = None) -> Image.Image:
    """One row an image: original, visible quarter, target if it is no image, reconstruction, with a heading.

    Args:
        results: What ``QBHeatInferencer`` returns.
        rows: Images below each other; the rest goes beside them. Defaults to all in one column.

    Returns:
        The image.
    """
    size, gap, heading = results[0]['original'].shape[0], 6, 22
    rows = rows or len(results)
    columns = [name for name in TITLES if name in results[0]]
    groups = -(-len(results) // rows)
    group_width = len(columns) * (size + gap) + gap
    canvas = Image.new('RGB', (groups * group_width + gap, heading + rows * (size + gap)), 'white')
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for group in range(groups):
        for column, name in enumerate(columns):
            x = gap + group * group_width + column * (size + gap)
            draw.text((x + size / 2, heading / 2), TITLES[name], fill='black', font=font, anchor='mm')
            for row, result in enumerate(results[group * rows : (group + 1) * rows]):
                canvas.paste(Image.fromarray(result[name]), (x, heading + row * (size + gap)))
    return canvas
