"""vidsieve inside vLLM: what `vllm serve MODEL --video-pruning-rate 0.9` prunes with once this package is installed.

vLLM calls `register` through the entry point `vllm.general_plugins`, in each of its processes. No vLLM file is changed
and none of its code is copied: subclasses of its models take their place when it looks them up.

    settings.py    VIDSIEVE_VLLM and what a request may ask: which method, how many tokens, what question
    positions.py   where kept tokens stand: plain tensors, no vLLM
    processor.py   the front end: fewer placeholders, and what is ordered of the encoder
    models.py      in the encoder: our selection, for models that vLLM can prune
    mrope.py       beside the runner: positions of three dimensions that are right
    framed.py      both for models whose frames have text between them, which vLLM cannot prune
    flat.py        both for models whose video is one run of tokens, with positions that just count
    derive.py      the subclass of a model, made from these when vLLM asks for the model
    runner.py      that look-up, and what vLLM's first model runner does to every pruned request, and need not

docs/serving.md is the manual.
"""

from vidsieve.engines.vllm.settings import configured


def register() -> None:
    """Have vLLM serve our subclasses of its models. Called in every vLLM process; a second call changes nothing."""
    if configured() is None:
        return
    from vllm import ModelRegistry

    from vidsieve.engines.vllm.runner import derive_models

    derive_models(ModelRegistry)
