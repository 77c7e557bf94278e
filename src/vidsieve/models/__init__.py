"""Reducers on Hugging Face video language models: attach, detach, trace, verify."""

from vidsieve.models import contract  # first, for it tells of a missing transformers
from vidsieve.models.families import Adapter, adapter_for, model_types, register
from vidsieve.models.seam_input import Attachment, attach, detach
from vidsieve.models.trace import CallRecord, Trace, VideoRecord
from vidsieve.models.verification import Verification, verify

__all__ = [
    "Adapter",
    "Attachment",
    "CallRecord",
    "Trace",
    "Verification",
    "VideoRecord",
    "adapter_for",
    "attach",
    "contract",
    "detach",
    "model_types",
    "register",
    "verify",
]
