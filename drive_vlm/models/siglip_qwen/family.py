"""The family `siglip_qwen`: registered with transformers' Auto classes when first asked for."""

from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models.family import Family, ProcessorParts
from drive_vlm.models.internvl import ATTENTION
from drive_vlm.models.quantize import quantization_arguments


def register() -> None:
    """Let AutoConfig, AutoProcessor and AutoModelForImageTextToText know the classes; calling it again does nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
    from drive_vlm.models.siglip_qwen.modeling import SiglipQwenForConditionalGeneration, SiglipQwenModel
    from drive_vlm.models.siglip_qwen.processing import SiglipQwenProcessor

    AutoConfig.register(SiglipQwenConfig.model_type, SiglipQwenConfig, exist_ok=True)
    AutoModel.register(SiglipQwenConfig, SiglipQwenModel, exist_ok=True)
    AutoModelForImageTextToText.register(SiglipQwenConfig, SiglipQwenForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(SiglipQwenConfig, SiglipQwenProcessor, exist_ok=True)


def load_processor(path: str, config: ModelConfig) -> ProcessorParts:
    """The processor and what the data path takes from it; no weights are read."""
    from drive_vlm.models.siglip_qwen.processing import SiglipQwenProcessor, SiglipQwenVision

    register()
    processor = SiglipQwenProcessor.from_pretrained(path)
    template = processor.tokenizer.chat_template
    return ProcessorParts(processor, processor.tokenizer, template, SiglipQwenVision(processor))


def build(path: str, config: ModelConfig, dtype: Any) -> Family:
    """Load model and processor from a directory that tools/build_siglip_qwen.py or a training run wrote."""
    from drive_vlm.models.siglip_qwen.modeling import SiglipQwenForConditionalGeneration

    parts = load_processor(path, config)
    model = SiglipQwenForConditionalGeneration.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=ATTENTION[config.attn_implementation],
        **quantization_arguments(config, ("model.vision_tower", "model.projector")),
    )
    return Family(
        name="siglip_qwen",
        model=model,
        processor=parts.processor,
        tokenizer=parts.tokenizer,
        template=parts.template,
        vision=parts.vision,
        parts={
            "vision_tower": ("model.vision_tower",),
            "temporal_embeddings": ("model.temporal_embeddings",),
            "projector": ("model.projector",),
            "language_model": ("model.language_model", "lm_head"),
        },
        lora_targets=r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        tokens_per_tile=model.config.patches,
        projector_tokens=model.config.image_seq_length,
    )
