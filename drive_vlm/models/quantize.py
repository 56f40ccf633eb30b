"""NF4 weights for the language model (QLoRA): frozen 4-bit matrices by bitsandbytes, adapters on top train in full precision.

Tower, projector, embeddings, norms and the head stay as they are: they are small, train, or lose most.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

from drive_vlm.config import ModelConfig


def check_training(config: ModelConfig, zero_stage: int) -> None:
    """Raises ValueError where 4-bit weights cannot train: nothing on top of them, or a layout that would shard them.

    Below a projector that trains they would pass gradients on; but transformers' Trainer takes a quantized model with adapters
    only, and a run without adapters saves the whole model: what the next stage adapts and merges would be the 4-bit weights.
    """
    if config.quantize != "none" and not config.lora_rank and "language_model" in config.freeze:
        raise ValueError(
            "--quantize nf4 with --freeze language_model: a run without adapters saves the whole model, and would save its "
            "language model in 4 bits. Leave --quantize out: frozen weights need no gradients and no optimizer states."
        )
    if config.quantize != "none" and not config.lora_rank:
        raise ValueError("--quantize nf4 with --lora_rank 0: 4-bit weights cannot train. Add --lora_rank, such as 32.")
    if config.quantize != "none" and zero_stage == 3:
        raise ValueError("--quantize nf4 with ZeRO-3: 4-bit weights cannot be sharded. Use --deepspeed zero2.")


def check_quantization(config: ModelConfig, for_training: bool) -> None:
    """Raises ValueError where `--quantize nf4` cannot work: no bitsandbytes, no CUDA, or what check_training refuses."""
    if config.quantize == "none":
        return
    from transformers.integrations import is_deepspeed_zero3_enabled

    if for_training:
        check_training(config, 3 if is_deepspeed_zero3_enabled() else 0)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("--quantize nf4 needs bitsandbytes: pip install bitsandbytes. Or leave --quantize out.")
    import torch

    if not torch.cuda.is_available():
        raise ValueError("--quantize nf4 needs a CUDA device, and torch sees none. Leave --quantize out.")


def quantization_arguments(config: ModelConfig, other_parts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of from_pretrained for `config.quantize`; `other_parts` are module paths next to the language model.

    NF4 with double quantisation, computed in bfloat16 (Dettmers et al. 2023, QLoRA, section 3).
    """
    if config.quantize == "none":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[*other_parts, "lm_head"],
    )
    return {"quantization_config": quantised}
