"""Plain language models (Llama, Qwen, Mistral and kin): a family without a picture side, for text rows and as judges."""

from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models.family import Family, ProcessorParts
from drive_vlm.models.internvl import ATTENTION
from drive_vlm.models.quantize import quantization_arguments


def load_processor(path: str, config: ModelConfig) -> ProcessorParts:
    """The tokenizer stands for the processor. Raises ValueError for one without a chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    if not tokenizer.chat_template:
        raise ValueError(f"{path}: the tokenizer has no chat template. Take the instruct variant of the model.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ProcessorParts(processor=tokenizer, tokenizer=tokenizer, template=tokenizer.chat_template, vision=None)


def build(path: str, config: ModelConfig, dtype: Any) -> Family:
    from transformers import AutoModelForCausalLM

    parts = load_processor(path, config)
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=ATTENTION[config.attn_implementation],
        **quantization_arguments(config, ()),
    )
    return Family(
        name="language",
        model=model,
        processor=parts.processor,
        tokenizer=parts.tokenizer,
        template=parts.template,
        vision=None,
        parts={"language_model": ("model", "lm_head")},
        lora_targets=r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        tokens_per_tile=0,
        projector_tokens=0,
    )
