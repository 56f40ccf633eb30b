"""A SigLIP2 tower and a causal language model put together with a new projector and new temporal embeddings."""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from drive_vlm.models.loading import model_type
from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
from drive_vlm.models.siglip_qwen.modeling import SiglipQwenForConditionalGeneration
from drive_vlm.models.siglip_qwen.processing import IMAGE_TOKEN, SPECIAL, SiglipQwenProcessor, chat_template
from drive_vlm.models.siglip_qwen.projector import build_projector


def compose_siglip_qwen(
    out: str | Path,
    vision_tower: str | Path,
    language_model: str | Path,
    dtype: str = "auto",
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Write a SiglipQwenForConditionalGeneration with its processor to `out`; drive_vlm.models.load_family loads it.

    Args:
        vision_tower: directory or hub id of a SigLIP or fixed-resolution SigLIP2 checkpoint (google/siglip2-so400m-patch14-384).
        language_model: directory, hub id or GGUF file of a causal language model whose tokenizer knows ChatML (Qwen/Qwen3-4B), or a
            siglip_qwen directory, of which only the language model is taken.
        dtype: of all weights; auto: the language model's.
        seed: of the projector, the temporal embeddings and tokens that the language model did not have.
        settings: projector_type, pool_size, num_queries, resampler_layers, max_frames of SiglipQwenConfig.

    Raises ValueError for a tower or a tokenizer that does not fit.
    """
    torch.manual_seed(seed)
    tower = _load_tower(vision_tower)
    body, tokenizer = _load_language(language_model, dtype)
    tokenizer, thinks = _prepare_tokenizer(tokenizer, str(language_model))
    if len(tokenizer) > body.config.vocab_size:
        body.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return write_model(
        out, tower, body, tokenizer, _image_processor(vision_tower, tower.config.image_size), thinks, **settings
    )


def write_model(
    out: str | Path, tower: Any, language: Any, tokenizer: Any, image_processor: Any, thinks: bool, **settings: Any
) -> Path:
    """Join a SiglipVisionModel without head and a causal language model, and save model and processor to `out`.

    The parts keep their weights; projector and temporal embeddings are drawn from torch's present random state.
    """
    language.config.eos_token_id, language.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    tower.config._name_or_path = language.config._name_or_path = ""
    config = SiglipQwenConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        **settings,
    )
    with torch.device("meta"):
        model = SiglipQwenForConditionalGeneration(config)
    projector = build_projector(config)
    temporal = nn.Embedding(config.max_frames, config.vision_config.hidden_size)
    for module in (projector, temporal):
        module.apply(model._init_weights)
    model.model.vision_tower, model.model.temporal_embeddings, model.model.projector = tower, temporal, projector
    model.model.language_model, model.lm_head = language.model, language.lm_head
    model.to(language.dtype)
    model.generation_config = GenerationConfig(
        eos_token_id=language.generation_config.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # an image token in an answer would pass for a part of a frame when the answer is read again, as GRPO does
        suppress_tokens=tokenizer.convert_tokens_to_ids(list(SPECIAL)),
    )
    tokenizer.chat_template = chat_template(thinks)
    processor = SiglipQwenProcessor(
        image_processor, tokenizer, config.image_seq_length, config.max_frames, chat_template=tokenizer.chat_template
    )
    out = Path(out)
    # A directory that is there is whole.
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    if out.is_dir():
        # Empty, or it is not ours to replace.
        out.rmdir()
    part.rename(out)
    return out


def _load_tower(path: str | Path) -> Any:
    """The vision tower without its pooling head. Raises ValueError for another kind of checkpoint, or one with weights missing."""
    kind = model_type(str(path))
    if kind not in ("siglip", "siglip_vision_model"):
        raise ValueError(
            f"{path}: model_type {kind!r} is not a SigLIP tower of fixed resolution. Take one such as "
            "google/siglip2-so400m-patch14-384; the NaFlex checkpoints have another layout."
        )
    config = SiglipVisionConfig.from_pretrained(path)
    config.vision_use_head = False
    loaded: Any = SiglipVisionModel.from_pretrained(path, config=config, dtype=torch.float32, output_loading_info=True)
    tower, info = loaded
    if info["missing_keys"]:
        raise ValueError(
            f"{path}: the checkpoint lacks {', '.join(sorted(info['missing_keys'])[:3])} ... of the tower."
        )
    return tower


def _load_language(path: str | Path, dtype: str) -> tuple[Any, Any]:
    """(causal language model, tokenizer)."""
    if str(path).endswith(".gguf"):
        model, tokenizer = load_gguf(path)
        return (model if dtype == "auto" else model.to(getattr(torch, dtype))), tokenizer
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    # Its error tells a wrong path from a missing download.
    if model_type(str(path)) == SiglipQwenConfig.model_type:
        whole = SiglipQwenForConditionalGeneration.from_pretrained(path, dtype=wanted)
        language = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=whole.dtype)
        language.model, language.lm_head = whole.model.language_model, whole.lm_head
        return language, SiglipQwenProcessor.from_pretrained(path).tokenizer
    return AutoModelForCausalLM.from_pretrained(path, dtype=wanted), AutoTokenizer.from_pretrained(path)


def _prepare_tokenizer(tokenizer: Any, name: str) -> tuple[Any, bool]:
    """(the tokenizer with the picture tokens, whether answers follow an empty think block as its own template has it)."""
    known = set(tokenizer.get_vocab())
    if not {"<|im_start|>", "<|im_end|>"} <= known:
        raise ValueError(
            f"{name}: its tokenizer has no <|im_start|> and <|im_end|>, but the chat template writes ChatML turns. Take a chat model."
        )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL if token not in known])
    tokenizer.eos_token = "<|im_end|>"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<|endoftext|>" if "<|endoftext|>" in known else tokenizer.eos_token
    return tokenizer, "enable_thinking" in (tokenizer.chat_template or "")


def _image_processor(path: str | Path, image_size: int) -> Any:
    """SigLIP's image processor with the checkpoint's own pixel statistics where it has them."""
    size = {"height": image_size, "width": image_size}
    try:
        return SiglipImageProcessor.from_pretrained(path, size=size)
    # A tower saved alone has no preprocessor_config.json.
    except OSError:
        return SiglipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def load_gguf(path: str | Path) -> tuple[Any, Any]:
    """(causal language model in float32, fast tokenizer) of a GGUF file, as plain modules that save_pretrained can write."""
    folder, name = str(Path(path).parent), Path(path).name
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
    # The loaded model is marked as quantized, which can neither be saved nor trained.
    config = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    model = type(quantised)(type(quantised.config)(**config))
    model.load_state_dict(quantised.state_dict())
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)
