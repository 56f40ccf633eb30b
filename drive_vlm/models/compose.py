"""An InternVL made of parts: any vision tower with square patches and a class token, any language model, a new projector.

For trials with small pretrained parts (DINOv2-S with SmolLM2-135M is a real VLM of 157 M weights). The classes are the
native ones; config.json keeps the tower's own `model_type`, which `internvl_config` reads back.
"""

import json
from pathlib import Path
from typing import Any

from drive_vlm.models.tiny import CHAT_TEMPLATE

_EXTRA_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def internvl_config(path: str) -> Any:
    """InternVLConfig of a directory or hub id, with the vision tower that it names.

    InternVLConfig reads every vision_config as an InternViT, whatever its model_type says: a DINOv2 tower would come
    back as an InternViT of the default size, with random weights.
    """
    from transformers import AutoConfig, PreTrainedConfig

    config = AutoConfig.from_pretrained(path)
    stored = dict(PreTrainedConfig.get_config_dict(path)[0].get("vision_config") or {})
    kind = stored.pop("model_type", "internvl_vision")
    if kind != "internvl_vision":
        config.vision_config = AutoConfig.for_model(kind, **stored)
    return config


def load_gguf(path: str | Path) -> tuple[Any, Any]:
    """(causal language model in float32, fast tokenizer) of a GGUF file, as plain modules that save_pretrained can write."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(Path(path).parent), Path(path).name
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
    config = (
        quantised.config.to_dict()
    )  # the loaded model is marked as quantized, which can neither be saved nor trained
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    model = type(quantised)(type(quantised.config)(**config))
    model.load_state_dict(quantised.state_dict())
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)


def compose_internvl(
    out: str | Path,
    vision: str | Path,
    language: Any,
    tokenizer: Any,
    image_size: int = 224,
    max_tiles: int = 6,
    seed: int = 0,
) -> Path:
    """Write an InternVLForConditionalGeneration with processor to `out`; drive_vlm.models.load_family loads it.

    Args:
        vision: directory of a tower whose `last_hidden_state float[P, 1 + L, Dv]` begins with a class token (DINOv2).
        language: a causal language model; its embeddings grow by the picture tokens.
        tokenizer: its fast tokenizer; it must know ChatML's <|im_start|> and <|im_end|>.
        image_size: side of a tile in pixels, an even multiple of the tower's patch size.
        seed: of the projector's and the new tokens' random weights.

    Raises ValueError for an image size that does not divide, and for a tokenizer without ChatML.
    """
    import torch
    from transformers import AutoModel, InternVLConfig, InternVLForConditionalGeneration

    torch.manual_seed(seed)
    tower = AutoModel.from_pretrained(vision, dtype=torch.float32)
    tower.config._name_or_path = ""
    patch = tower.config.patch_size
    grid = image_size // patch
    if grid * patch != image_size or grid % 2:
        raise ValueError(f"image_size {image_size} must be an even multiple of the tower's patch size {patch}.")
    processor = _processor(vision, tokenizer, image_size, grid * grid // 4, max_tiles)
    tokenizer = processor.tokenizer
    language.resize_token_embeddings(max(len(tokenizer), language.config.vocab_size), mean_resizing=False)
    language.config.eos_token_id, language.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = InternVLConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_id=processor.image_token_id,
        image_seq_length=processor.image_seq_length,
        downsample_ratio=0.5,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    model = InternVLForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)


def _processor(vision: str | Path, tokenizer: Any, image_size: int, tokens: int, max_tiles: int) -> Any:
    """InternVL's processor with the language model's words, the picture tokens and the tower's pixel statistics."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor, PreTrainedTokenizerFast

    if not {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_vocab()):
        raise ValueError("The tokenizer has no <|im_start|> and <|im_end|>: the chat template writes ChatML turns.")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_EXTRA_TOKENS,
    )
    size = {"height": image_size, "width": image_size}
    stored = Path(vision) / "preprocessor_config.json"
    pixels = json.loads(stored.read_text()) if stored.is_file() else {}
    pixels = {name: pixels[name] for name in ("image_mean", "image_std") if name in pixels}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, max_patches=max_tiles, **pixels),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size, **pixels),
        image_seq_length=tokens,
        chat_template=CHAT_TEMPLATE,
    )
