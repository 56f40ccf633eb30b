"""Tiny random twins of Qwen2.5-VL and Qwen3-VL: the real classes, processors and names of tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drive_vlm.models.tiny.tiny import language_numbers, save_model, train_tokenizer

_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# As Qwen's own templates do it: ChatML, pictures and videos where the row has them, between a begin and an end.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_qwen3_vl(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 3,
    text_layers: int = 3,
    vocab_size: int = 2000,
    tie_word_embeddings: bool = False,
    seed: int = 0,
) -> Path:
    """Write a random Qwen3VLForConditionalGeneration to `out`, with DeepStack features of two layers.

    `image_size` is the side of a square with the most pixels that a picture keeps.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, vocab_size, _TOKENS, {})
    text = transformers.Qwen3VLTextConfig(
        **language_numbers(tokenizer, hidden_size, text_layers), head_dim=32, rope_parameters=_rope("interleaved")
    )
    vision = transformers.Qwen3VLVisionConfig(
        **_tower(hidden_size, vision_layers, patch_size), out_hidden_size=hidden_size,
        num_position_embeddings=64, deepstack_visual_indexes=list(range(vision_layers - 1)),
    )  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        tie_word_embeddings=tie_word_embeddings,
        **_ids(tokenizer),
    )
    sizes = _sizes(image_size, patch_size)
    # Of a video the limits are those of all frames.
    video = {"shortest_edge": 4 * sizes["shortest_edge"], "longest_edge": 8 * sizes["longest_edge"]}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(
            size=sizes, patch_size=patch_size, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(size=video, patch_size=patch_size, cap_pixels_per_frame=False),
        chat_template=TEMPLATE,
    )
    return save_model(out, transformers.Qwen3VLForConditionalGeneration(config), processor)


def build_tiny_qwen2_5_vl(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    vocab_size: int = 2000,
    tie_word_embeddings: bool = False,
    seed: int = 0,
) -> Path:
    """Write a random Qwen2_5_VLForConditionalGeneration to `out`; all layers of its tower but the last look through windows.

    `image_size` is the side of a square with the most pixels that a picture keeps.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, vocab_size, _TOKENS, {})
    text = transformers.Qwen2_5_VLTextConfig(
        **language_numbers(tokenizer, hidden_size, text_layers), bos_token_id=None, rope_parameters=_rope("sections")
    )
    vision = transformers.Qwen2_5_VLVisionConfig(
        **_tower(hidden_size, vision_layers, patch_size), out_hidden_size=hidden_size,
        window_size=4 * patch_size, fullatt_block_indexes=[vision_layers - 1], tokens_per_second=2,
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        tie_word_embeddings=tie_word_embeddings,
        **_ids(tokenizer),
    )
    sizes = _sizes(image_size, patch_size)
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(size=sizes, patch_size=patch_size),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(size=sizes, patch_size=patch_size, cap_pixels_per_frame=False),
        chat_template=TEMPLATE,
    )
    return save_model(out, transformers.Qwen2_5_VLForConditionalGeneration(config), processor)


def _tower(hidden_size: int, layers: int, patch_size: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "depth": layers,
        "num_heads": max(1, hidden_size // 32),
        "intermediate_size": hidden_size * 4,
        "patch_size": patch_size,
        "initializer_range": hidden_size**-0.5,
    }


def _rope(kind: str) -> dict[str, Any]:
    """Pairs of a head of 32 for time, rows and columns, in the proportions of the published models."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    return {**rope, "mrope_section": [6, 5, 5], "mrope_interleaved": True} if kind == "interleaved" else rope


def _ids(tokenizer: Any) -> dict[str, Any]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _sizes(image_size: int, patch_size: int) -> dict[str, int]:
    if image_size % (2 * patch_size):
        raise ValueError(f"image_size {image_size} must be an even multiple of patch_size {patch_size}.")
    return {"shortest_edge": (2 * patch_size) ** 2, "longest_edge": image_size**2}
