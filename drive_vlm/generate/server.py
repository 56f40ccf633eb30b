"""Answers of an OpenAI-compatible server instead of a model in this process."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from drive_vlm.config import ModelConfig
from drive_vlm.data.samples import IMAGE, BadRow, Sample

if TYPE_CHECKING:
    from drive_vlm.generate import GenerateConfig


def answers_of_server(
    samples: list[Sample], model: ModelConfig, config: "GenerateConfig"
) -> Iterator[tuple[Sample, str]]:
    """The same rows through an OpenAI-compatible server, `workers` requests at a time."""
    from drive_vlm.judge import ChatClient

    if not config.base_url:
        raise ValueError("--backend openai needs --base-url, e.g. http://localhost:8000/v1.")
    client = ChatClient(config.base_url, model.model, config.api_key_env)
    sampling: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_new_tokens,
        "seed": config.seed,
    }
    for start in range(0, len(samples), 8 * config.workers):
        block = samples[start : start + 8 * config.workers]
        replies = client.complete_many([chat_messages(sample) for sample in block], workers=config.workers, **sampling)
        yield from zip(block, (reply.text.strip() for reply in replies), strict=True)


def chat_messages(sample: Sample) -> list[dict[str, Any]]:
    """The prompt as OpenAI chat messages, pictures in their places as data URLs."""
    from drive_vlm.data.vision import load_image
    from drive_vlm.judge import image_part

    if sample.video:
        raise BadRow(
            "no_video",
            sample.where,
            "OpenAI-compatible servers take no video files",
            "Write the frames as images, or use --backend hf",
        )
    for path in sample.images:
        load_image(path, sample.where)
    images = iter(sample.images)
    return [
        {
            "role": turn.role,
            "content": [
                image_part(next(images)) if part == IMAGE else {"type": "text", "text": part} for part in turn.parts
            ],
        }
        if turn.role == "user"
        else {"role": turn.role, "content": turn.text}
        for turn in sample.prompt_turns()
    ]
