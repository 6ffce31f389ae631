from .low_freq_generator import LowFreqTargetGenerator
from .patch_hog_generator import PatchHOGGenerator

__all__ = ['LowFreqTargetGenerator', 'PatchHOGGenerator']
