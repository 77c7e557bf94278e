"""`transformers serve` with a method attached to every model that it loads.

    pip install 'transformers[serving]' torchcodec
    python examples/serve_transformers.py Qwen/Qwen2.5-VL-7B-Instruct --port 8000

Tried with transformers 5.24.0. All options are those of `transformers serve`, and requests do not change. A video is a
part of a message: {"type": "video_url", "video_url": {"url": "clip.mp4"}}. `usage.prompt_tokens` counts the prompt
before the reduction. VIDSIEVE_METHOD and VIDSIEVE_KEEP choose the method and the share that it keeps.
"""

import os
from contextlib import suppress
from typing import Any

import typer
from transformers.cli.serve import Serve
from transformers.cli.serving import model_manager
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import Modality

import vidsieve
from vidsieve.errors import AlreadyAttached

METHOD = os.environ.get("VIDSIEVE_METHOD", "vidsieve")
KEEP = float(os.environ.get("VIDSIEVE_KEEP", "0.25"))


class SievedModels(ModelManager):
    """Loads models as `transformers serve` does, and attaches the method to each."""

    def load_model_and_processor(self, *arguments: Any, **options: Any) -> Any:
        model, processor = super().load_model_and_processor(*arguments, **options)
        with suppress(AlreadyAttached):  # it was loaded for an earlier request
            vidsieve.attach(model, METHOD, keep=KEEP)
            print(f"vidsieve: {METHOD} keeps {KEEP:.0%} of the video tokens", flush=True)
        return model, processor

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        """Tell a model that hears from one that only sees, whose videos need no sound; transformers 5.24 does not."""
        found = ModelManager.get_model_modality(model, processor)
        deaf = processor is not None and not hasattr(processor, "feature_extractor")
        return Modality.VLM if found is Modality.MULTIMODAL and deaf else found


model_manager.ModelManager = SievedModels  # which `Serve` looks up when it starts

if __name__ == "__main__":
    typer.run(Serve)
