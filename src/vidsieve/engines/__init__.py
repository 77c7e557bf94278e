"""Where a reduction meets a model: Hugging Face transformers (`hf`), vLLM (`vllm`), a captured CUDA graph (`graph`)."""
