"""Tiny random twins of MiniCPM-Llama3-V-2_5 and MiniCPM-V-2_6: the real classes, names of tokens and files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drive_vlm.models.tiny.tiny import _tower, language_numbers, save_model, train_tokenizer

_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image_id>", "</image_id>")
_PICTURES = ("<unk>", "<image>", "</image>", "<slice>", "</slice>")
# Patches on a side of the table of positions; slices of a sliver have more, and share them.
_POSITIONS = 10


def build_tiny_minicpmv(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    vocab_size: int = 2000,
    seed: int = 0,
    max_tiles: int = 5,
    num_queries: int = 8,
    version: str = "2.5",
) -> Path:
    """Write a random MiniCPMVForConditionalGeneration to `out`.

    A slice has about `image_size` x `image_size` pixels; a picture has `max_tiles` slices at most, the whole one included.
    """
    import torch
    from transformers import AutoConfig
    from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig

    from drive_vlm.models.minicpmv.configuration import MiniCPMVConfig
    from drive_vlm.models.minicpmv.modeling import MiniCPMVForConditionalGeneration
    from drive_vlm.models.minicpmv.processing import MiniCPMVImageProcessor, MiniCPMVProcessor
    from drive_vlm.models.minicpmv.versions import VERSIONS

    if version not in VERSIONS:
        raise ValueError(f"version {version!r} is unknown. Use {' or '.join(VERSIONS)}.")
    torch.manual_seed(seed)
    special = (*(_LLAMA3 if version == "2.5" else _CHATML), *_PICTURES)
    tokenizer = train_tokenizer(corpus, vocab_size, special, {})
    tokenizer.eos_token, tokenizer.pad_token = (
        ("<|eot_id|>", "<|end_of_text|>") if version == "2.5" else ("<|im_end|>", "<|endoftext|>")
    )
    pixels = MiniCPMVImageProcessor(max_tiles - 1, image_size, patch_size, num_queries, version=version)
    processor = MiniCPMVProcessor(pixels, tokenizer)
    text: dict[str, Any] = language_numbers(tokenizer, hidden_size, text_layers)
    vision = _tower(hidden_size, vision_layers, _POSITIONS * patch_size, patch_size)
    # What is no field of the configuration is kept as it is.
    more: dict[str, Any] = {"image_size": image_size}
    config = MiniCPMVConfig(
        vision_config=Idefics2VisionConfig(**vision, initializer_range=text["initializer_range"]),
        text_config=AutoConfig.for_model(VERSIONS[version].text, **text, bos_token_id=None, tie_word_embeddings=False),
        version=version,
        query_num=num_queries,
        image_token_id=processor.image_token_id,
        initializer_range=text["initializer_range"],
        **more,
    )
    return save_model(out, MiniCPMVForConditionalGeneration(config), processor)
