from .pixel_head import PixelDecoder, PixelHead

__all__ = ['PixelDecoder', 'PixelHead']
