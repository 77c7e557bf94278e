"""Every model of the installed transformers that takes a video has an adapter, or a reason why it has none."""

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from torch import nn
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from tests.engines.hf.reducers import Loudest
from vidsieve.engines.hf import attach, model_types
from vidsieve.engines.hf.families import REFUSED
from vidsieve.errors import UnsupportedModel

MODELS = Path(transformers.__file__).parent / "models"
# They have a video processor and make no text of what it gives: classes, masks, or features of a clip.
NO_TEXT = {"sam2_video", "timesformer", "videomae", "vivit"}
IMAGES = {"instructblip"}  # named with the processor of instructblipvideo


def takes_video(model: type) -> bool:
    return hasattr(model, "get_video_features") or "pixel_values_videos" in inspect.signature(model.forward).parameters


def types_with_video() -> set[str]:
    """The model types with a class that takes videos, and those that a video processor is registered for."""
    found = set(VIDEO_PROCESSOR_MAPPING_NAMES) - NO_TEXT - IMAGES
    for path in MODELS.glob("*/modeling_*.py"):
        if not re.search(r"pixel_values_videos|get_video_features", path.read_text()):
            continue
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for model in vars(module).values():
            if inspect.isclass(model) and issubclass(model, transformers.PreTrainedModel) and takes_video(model):
                config = model.config_class
                found |= {config.model_type} if config is not None and config.model_type else set()
    return found


def test_every_type_that_takes_a_video_is_served_or_has_a_reason() -> None:
    missing = types_with_video() - {*model_types(), *REFUSED}
    assert not missing, f"transformers {transformers.__version__} has new types with video: {sorted(missing)}"


def test_no_type_is_served_and_refused() -> None:
    assert not set(REFUSED) & set(model_types())


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refused_type_is_told_why(model_type: str) -> None:
    model = nn.Module()
    model.config = SimpleNamespace(model_type=model_type)
    with pytest.raises(UnsupportedModel, match=re.escape(REFUSED[model_type])):
        attach(model, Loudest())
