"""Tiny random LLaVA-NeXT and SmolVLM of the real classes, with tokenizer and processor; tiny.py has the others."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drive_vlm.models.tiny.tiny import SPECIAL, train_tokenizer

# As LLaVA-NeXT's own templates do it: the pictures of a turn before its words, none of it for a video.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As SmolVLM has it: one begin for the whole dialog, roles in plain words.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' if part['type'] == 'image' else '' }}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _llama(tokenizer: Any, hidden_size: int, layers: int) -> dict[str, Any]:
    from transformers import LlamaConfig

    heads = max(1, hidden_size // 32)
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=4096,
        # As in build_tiny_internvl: 0.02 would leave the layers of a narrow model near zero.
        initializer_range=hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).to_dict()


def _tower(hidden_size: int, layers: int, image_size: int, patch_size: int) -> dict[str, Any]:
    if image_size % patch_size or image_size % 2:
        raise ValueError(f"image_size {image_size} must be even and a multiple of patch_size {patch_size}.")
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden_size // 32),
        "intermediate_size": hidden_size * 4,
        "image_size": image_size,
        "patch_size": patch_size,
        "initializer_range": hidden_size**-0.5,
    }


def _save(out: str | Path, model: Any, processor: Any) -> Path:
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)


def build_tiny_llava_next(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 14,
    hidden_size: int = 64,
    vision_layers: int = 3,
    text_layers: int = 2,
    vocab_size: int = 2000,
    seed: int = 0,
) -> Path:
    """Write a random LlavaNextForConditionalGeneration (CLIP tower, Llama) to `out`, with the five grids of the published one."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, vocab_size, (*SPECIAL[:3], "<image>"), {})
    side = image_size
    grids = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    vision = CLIPVisionConfig(**_tower(hidden_size, vision_layers, image_size, patch_size), projection_dim=hidden_size)
    config = LlavaNextConfig(
        vision_config=vision.to_dict(),
        text_config=_llama(tokenizer, hidden_size, text_layers),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch_size) ** 2,
        image_grid_pinpoints=grids,
        tie_word_embeddings=False,
    )
    square = {"height": side, "width": side}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=grids
        ),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return _save(out, LlavaNextForConditionalGeneration(config), processor)


def build_tiny_smolvlm(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    vocab_size: int = 2000,
    seed: int = 0,
    splits: int = 2,
    kind: str = "idefics3",
) -> Path:
    """Write a random Idefics3 (as SmolVLM-Instruct is), or with kind "smolvlm" one of SmolVLM's own class, to `out`.

    A picture's longer edge is `splits` tiles long.
    """
    import torch
    import transformers

    if kind not in ("idefics3", "smolvlm"):
        raise ValueError(f"kind {kind!r} is unknown. Use idefics3 or smolvlm.")
    # Any: two sets of classes of one shape.
    hf: Any = transformers
    torch.manual_seed(seed)
    named = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    places = [f"<row_{i + 1}_col_{j + 1}>" for i in range(splits) for j in range(splits)]
    tokenizer = train_tokenizer(corpus, vocab_size, (*SPECIAL[:2], *named, *places), {})
    tokenizer.eos_token = "<end_of_utterance>"
    own = kind == "smolvlm"
    vision_class = hf.SmolVLMVisionConfig if own else hf.Idefics3VisionConfig
    config = (hf.SmolVLMConfig if own else hf.Idefics3Config)(
        vision_config=vision_class(**_tower(hidden_size, vision_layers, image_size, patch_size)).to_dict(),
        text_config=_llama(tokenizer, hidden_size, text_layers),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    pixels = {"size": {"longest_edge": splits * image_size}, "max_image_size": {"longest_edge": image_size}}
    tokens = (image_size // patch_size // 2) ** 2
    if own:
        video = hf.SmolVLMVideoProcessor(size={"longest_edge": image_size}, max_image_size={"longest_edge": image_size})
        processor = hf.SmolVLMProcessor(
            hf.SmolVLMImageProcessor(**pixels), tokenizer, video, tokens, chat_template=SMOLVLM_TEMPLATE
        )
        model = hf.SmolVLMForConditionalGeneration(config)
    else:
        processor = hf.Idefics3Processor(
            hf.Idefics3ImageProcessor(**pixels), tokenizer, tokens, chat_template=SMOLVLM_TEMPLATE
        )
        model = hf.Idefics3ForConditionalGeneration(config)
    return _save(out, model, processor)
