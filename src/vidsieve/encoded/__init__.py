"""Videos encoded once and asked later: what is stored of one (`stored`), and jobs of many (`batch`)."""

from vidsieve.encoded import batch, stored

__all__ = ["batch", "stored"]
