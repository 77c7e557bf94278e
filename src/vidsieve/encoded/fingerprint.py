"""Know the model that a video was encoded by: features of one model mean nothing to another."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from vidsieve.checks import require
from vidsieve.engines.hf import adapter_for
from vidsieve.errors import WrongArgument

Scalar = str | int | float | bool
# What a configuration says of how a model runs or was saved, not of what it computes.
_VOLATILE = {
    *("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"),
    *("_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "chunk_size_feed_forward"),
    *("initializer_range", "attention_dropout", "problem_type", "tie_word_embeddings", "is_encoder_decoder"),
    *("id2label", "label2id", "quantization_config"),
}


@dataclass(frozen=True)
class Fingerprint:
    """Who encoded a video, and how.

    model_type, config: of the model; the numbers, names and switches of its configuration, by their path.
    name: what it was loaded by, an id of the Hub or the path of a folder; empty where that is not known. It is not
    compared.
    transformers, vidsieve: versions.  keep: the share of tokens.  method: the repr of what chose them.
    """

    model_type: str
    config: Mapping[str, Scalar]
    transformers: str
    vidsieve: str
    keep: float
    method: str
    name: str = ""

    @classmethod
    def of(cls, model: Any, keep: float, method: str) -> Self:
        """Take the fingerprint of `model`. Raises `UnsupportedModel` if no adapter serves it."""
        adapter_for(model)
        versions = require("transformers", "hf").__version__, version("vidsieve")
        name = full_name(str(getattr(model, "name_or_path", "") or ""))
        return cls(model.config.model_type, config_of(model), *versions, keep, method, name)

    @property
    def digest(self) -> str:
        """The SHA-256 of the configuration, in hexadecimal."""
        return hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode()).hexdigest()

    def check(self, model: Any) -> None:
        """Raise `WrongArgument` if `model` is not of the kind that encoded the video.

        What only one of both configurations names is not compared, for releases of transformers differ in that.
        Weights are not compared.
        """
        found = replace(self, model_type=model.config.model_type, config=config_of(model))
        if differs := self.differs(found):
            raise WrongArgument(
                f"the video was encoded by {differs}; ask the model that encoded it, or encode it again"
            )

    def differs(self, other: "Fingerprint") -> str:
        """Say what sets the model apart from another one; empty where nothing does that both configurations name."""
        if other.model_type != self.model_type:
            return f"a {self.model_type}, and this is a {other.model_type}"
        for name, value in self.config.items():
            if other.config.get(name, value) != value:
                return f"a {self.model_type} whose {name} is {value!r}, and here it is {other.config[name]!r}"
        return ""


def full_name(model: str) -> str:
    """Write the name of a model as what is stored has it: a folder by its absolute path."""
    return str(Path(model).resolve()) if model and Path(model).is_dir() else model


def config_of(model: Any) -> dict[str, Scalar]:
    """Collect the numbers, names and switches of a model's configuration, by their path."""
    return dict(sorted(_scalars("", model.config.to_dict())))


def _scalars(path: str, value: Any) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _VOLATILE and not str(name).startswith("_"):
                yield from _scalars(f"{path}.{name}" if path else str(name), inner)
    elif isinstance(value, list | tuple) and all(isinstance(x, Scalar) for x in value):
        yield path, json.dumps(list(value))
    elif isinstance(value, Scalar):
        yield path, value
