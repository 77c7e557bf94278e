"""Reducers on Hugging Face video language models: load, prepare, attach, detach, verify."""

from vidsieve.engines.hf import contract  # first, for it tells of a missing transformers
from vidsieve.engines.hf.attach import Attachment, attach, detach
from vidsieve.engines.hf.families import Adapter, adapter_for, model_types, register
from vidsieve.engines.hf.loading import load, prepare
from vidsieve.engines.hf.verification import Verification, verify
from vidsieve.telemetry.trace import CallRecord, Trace, VideoRecord

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
    "load",
    "model_types",
    "prepare",
    "register",
    "verify",
]
