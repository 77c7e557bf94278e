"""vidsieve inside vLLM: what `vllm serve MODEL --video-pruning-rate 0.9` prunes with once this package is installed.

vLLM calls `register` through the entry point `vllm.general_plugins`, in each of its processes. No vLLM file is changed
and none of its code is copied: subclasses of its models take their place in its registry.

    settings.py    VIDSIEVE_VLLM and what a request may ask: which method, how many tokens, what question
    positions.py   where kept tokens stand: plain tensors, no vLLM
    models.py      the subclasses: fewer placeholders, our selection, positions that are right
    runner.py      what vLLM's first model runner does to every pruned request, and need not

docs/serving.md is the manual.
"""

from vidsieve.engines.vllm.settings import configured

# Architecture in a checkpoint's config.json: who serves it.
ARCHITECTURES = {
    "Qwen2_5_VLForConditionalGeneration": "vidsieve.engines.vllm.models:SievedQwen2_5_VL",
    "Qwen3VLForConditionalGeneration": "vidsieve.engines.vllm.models:SievedQwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "vidsieve.engines.vllm.models:SievedQwen3VLMoe",
}


def register() -> None:
    """Put our models in the place of vLLM's. Called in every vLLM process; a second call changes nothing."""
    if configured() is None:
        return
    from vllm import ModelRegistry

    from vidsieve.engines.vllm.runner import report_unsupported

    for architecture, served_by in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, served_by)
    report_unsupported(ModelRegistry)
