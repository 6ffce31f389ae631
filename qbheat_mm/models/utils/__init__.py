from .patches import (
    check_feature_map,
    crop_quarter,
    gather_patches,
    gather_tokens,
    masked_cells,
    normalize_patches,
    patchify,
    unpatchify,
)
from .position_embedding import sincos_position_embedding
from .view_data_preprocessor import ViewDataPreprocessor

__all__ = [
    'ViewDataPreprocessor',
    'check_feature_map',
    'crop_quarter',
    'gather_patches',
    'gather_tokens',
    'masked_cells',
    'normalize_patches',
    'patchify',
    'sincos_position_embedding',
    'unpatchify',
]
