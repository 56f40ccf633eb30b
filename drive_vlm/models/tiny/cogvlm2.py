"""A tiny random twin of CogVLM2: our own classes and processor, and the published names of tensors and tokens."""

from collections.abc import Iterable
from pathlib import Path

from drive_vlm.models.tiny.tiny import language_numbers, save_model, train_tokenizer


def build_tiny_cogvlm2(
    out: str | Path,
    corpus: Iterable[str],
    image_size: int = 56,
    patch_size: int = 7,
    hidden_size: int = 64,
    vision_layers: int = 2,
    text_layers: int = 2,
    vocab_size: int = 2000,
    template: str = "chat",
    seed: int = 0,
) -> Path:
    """Write a random CogVLM2 to `out`; `template` is chat, vqa or base."""
    import torch

    from drive_vlm.models.cogvlm2.configuration import CogVLM2Config
    from drive_vlm.models.cogvlm2.modeling import CogVLMForCausalLM
    from drive_vlm.models.cogvlm2.processing import (
        BOS,
        EOS,
        IMAGE_TOKEN,
        CogVLM2Processor,
        chat_template,
        square_pixels,
    )

    if image_size % (2 * patch_size):
        raise ValueError(f"image_size {image_size} must be an even multiple of patch_size {patch_size}.")
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus, vocab_size, (BOS, EOS, IMAGE_TOKEN, "<|eot_id|>"), {})
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BOS, EOS, IMAGE_TOKEN
    text = language_numbers(tokenizer, hidden_size, text_layers)
    config = CogVLM2Config(
        vision_config={
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 4,
            "num_hidden_layers": vision_layers,
            "num_heads": max(1, hidden_size // 32),
            "image_size": image_size,
            "patch_size": patch_size,
            "num_positions": (image_size // patch_size) ** 2 + 1,
        },
        num_multi_query_heads=text.pop("num_key_value_heads"),
        bos_token_id=tokenizer.bos_token_id,
        template_version=template,
        **text,
    )
    processor = CogVLM2Processor(
        square_pixels(image_size), tokenizer, config.picture_tokens, chat_template=chat_template(template)
    )
    return save_model(out, CogVLMForCausalLM(config), processor)
