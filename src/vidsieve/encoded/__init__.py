"""Encode videos once and use them later: the stored tensors of one (`stored`), and jobs of many (`batch`)."""

from vidsieve.encoded import batch, stored

__all__ = ["batch", "stored"]
