"""The shapes of a model of the suite that is quick to run."""

from vidsieve.evaluation.needles import Size

SIZE = Size(frames=8, token=8)
LONG = Size(frames=32, token=8, suite="long")
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2}
