"""What vLLM does around a model that prunes, and where vidsieve changes it.

vLLM's first model runner (`v1/worker/gpu_model_runner.py`; its CPU runner is one) treats a pruning model in two ways
that cost requests a second: it encodes the videos of a step one by one, for fear of memory, and it has the positions of
*every* request of *every* step recomputed, long after its prompt was read. Our encoder bounds the memory itself, and
our positions are final once written, so neither is needed. Its second runner does neither.
"""

from functools import wraps
from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import supports_multimodal, supports_multimodal_pruning

from vidsieve.engines.vllm.settings import KWARG, VARIABLE, method_is_explicit, pruning_rate
from vidsieve.errors import UnsupportedCall, UnsupportedModel, WrongArgument

logger = init_logger("vllm.vidsieve")


def pruning_spec(model_config: Any) -> tuple[str, float] | None:
    """`--video-pruning-method` and `--video-pruning-rate`, if vLLM is to prune."""
    multimodal = getattr(model_config, "multimodal_config", None)
    return None if multimodal is None else multimodal.get_video_pruning_spec()


def check_started_with(multimodal: Any) -> None:
    """Raise `UnsupportedCall` for what a request may ask where it is an option of the server."""
    if KWARG in (getattr(multimodal, "mm_processor_kwargs", None) or {}):
        raise UnsupportedCall(
            f'"{KWARG}" belongs in the mm_processor_kwargs of a request, not in --mm-processor-kwargs of the server; '
            f"for all requests there are --video-pruning-rate and {VARIABLE}"
        )


def patch_worker() -> None:
    """Have what a vidsieve model holds of videos dropped when vLLM drops its own, as it does for new weights."""
    from vllm.v1.worker.gpu_worker import Worker  # of both runners, and of CPUs

    reset = Worker.reset_encoder_cache
    if hasattr(reset, "__wrapped__"):
        return

    @wraps(reset)
    def reset_and_forget(worker: Any, *args: Any, **kwargs: Any) -> Any:
        model = worker.model_runner.get_model()
        if getattr(model, "sieves", False):
            model.forget()
        return reset(worker, *args, **kwargs)

    Worker.reset_encoder_cache = reset_and_forget


def patch_runner() -> None:
    """Spare vLLM's first model runner, if this vLLM has it, its special treatment of a vidsieve model."""
    try:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("vllm.v1.worker"):
            raise
        return
    if hasattr(GPUModelRunner._execute_mm_encoder, "__wrapped__"):
        return
    encode, gather = GPUModelRunner._execute_mm_encoder, GPUModelRunner._gather_mm_embeddings

    @wraps(encode)
    def encode_together(runner: Any, *args: Any, **kwargs: Any) -> Any:
        if _sieves(runner):
            runner.is_multimodal_pruning_enabled = False
        return encode(runner, *args, **kwargs)

    @wraps(gather)
    def gather_where_new(runner: Any, *args: Any, **kwargs: Any) -> Any:
        if _sieves(runner):
            runner.is_multimodal_pruning_enabled = _reads_prompts(runner)
        return gather(runner, *args, **kwargs)

    GPUModelRunner._execute_mm_encoder, GPUModelRunner._gather_mm_embeddings = encode_together, gather_where_new


def _sieves(runner: Any) -> bool:
    return bool(getattr(runner.get_model(), "sieves", False))


def _reads_prompts(runner: Any) -> bool:
    """Whether any request of this step still has some of its prompt before it."""
    requests = (runner.requests[name] for name in runner.input_batch.req_ids)
    return any(request.num_computed_tokens < request.num_prompt_tokens for request in requests)


def derive_models(registry: Any) -> None:
    """Have vLLM's registry answer with our subclass of each model that has one, made when a server asks for the model.

    For any other model that is to prune, the server logs a warning as it loads it; a user who named a method in
    VIDSIEVE_VLLM gets `UnsupportedModel` instead. Options of the server that would never be honoured are refused with
    `WrongArgument`, by whichever process asks first: that which reads the options, before it starts workers.
    A second call changes nothing.
    """
    resolve = registry.resolve_model_cls
    if hasattr(resolve, "__wrapped__"):
        return

    @wraps(resolve)
    def resolve_and_derive(architectures: Any, model_config: Any) -> Any:
        model, architecture = resolve(architectures, model_config)
        if not supports_multimodal(model) or getattr(model_config, "runner_type", None) == "draft":
            return model, architecture
        from vidsieve.engines.vllm.derive import ROOTS, derive  # not at start-up: it loads what models are made of

        ours, reason = derive(model)
        try:
            rate = pruning_rate(pruning_spec(model_config))
            if ours is not None:
                check_started_with(getattr(model_config, "multimodal_config", None))
                return ours, architecture
        except UnsupportedCall as error:  # a ValueError, for which vLLM would serve the model without its videos
            raise WrongArgument(str(error)) from None
        if rate is not None:
            instead = "vLLM's own method runs" if supports_multimodal_pruning(model) else "nothing is pruned"
            roots = ", ".join(root.rpartition(".")[2] for root in ROOTS)
            text = (
                f"vidsieve: NOT active in {architecture}: {reason or f'expected one of {roots}, or a subclass'}; "
                f"with --video-pruning-rate {rate} as given, {instead}"
            )
            if method_is_explicit():
                raise UnsupportedModel(f"{text}. Unset {VARIABLE}, or set it to off, to go on without vidsieve")
            logger.warning(text)
        return model, architecture

    registry.resolve_model_cls = resolve_and_derive
