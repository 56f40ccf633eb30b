"""Answers of an OpenAI-compatible server instead of a model in this process."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from drive_vlm.config import ModelConfig
from drive_vlm.data.predictions import Answer
from drive_vlm.data.samples import IMAGE, BadRow, Sample
from drive_vlm.data.turns import one_row
from drive_vlm.launch.stop import until_stopped

if TYPE_CHECKING:
    from drive_vlm.generate.config import GenerateConfig
    from drive_vlm.generate.json_schema import JsonSchema


def answers_of_server(
    samples: list[Sample],
    model: ModelConfig,
    config: "GenerateConfig",
    bad: list[BadRow],
    schema: "JsonSchema | None" = None,
) -> Iterator[tuple[Sample, Answer]]:
    """(sample, answer) of every row from an OpenAI-compatible server, `workers` requests at a time, in the order of their arrival.

    A request that the server refuses, or answers with nothing in every attempt, has the answer "", like that of a model that
    says nothing, and the finish_reason refused. With `schema` the server is asked for answers that follow it. Rows that cannot be sent are added to `bad` with on_bad_row skip, else raised (BadRow).
    """
    from drive_vlm.judges.chat_client import ChatClient

    if not config.base_url:
        raise ValueError("--backend openai needs --base-url, e.g. http://localhost:8000/v1.")
    client = ChatClient(config.base_url, model.model, config.api_key_env)
    sampling: dict[str, Any] = {name: getattr(config, name) for name in ("temperature", "top_p", "seed")}
    if schema is not None:
        wanted = {"name": "answer", "schema": schema.schema, "strict": True}
        sampling["response_format"] = {"type": "json_schema", "json_schema": wanted}
    empty: list[str] = []
    # In blocks: messages hold whole pictures, and those of all rows at once would fill the memory.
    for start in until_stopped(range(0, len(samples), 8 * config.workers)):
        block = samples[start : start + 8 * config.workers]
        asked: dict[tuple[str, str], Any] = {}
        for sample in block:
            try:
                with one_row(sample.where):
                    asked[sample.key] = chat_messages(sample)
            except BadRow as error:
                if config.on_bad_row == "error":
                    raise
                bad.append(error)
        rows = {sample.key: sample for sample in block}
        for name, reply in client.complete_each(
            asked, config.workers, keep_refused=True, max_tokens=config.max_new_tokens, **sampling
        ):
            if not reply.text:
                empty.append(reply.finish_reason)
            yield rows[name], Answer(reply.text.strip(), reply.ending)
    if empty:
        first = "; ".join(empty[:3])
        print(
            f"{len(empty):,} answers are empty, since the server refused or said nothing. The first: {first}",
            flush=True,
        )


def chat_messages(sample: Sample) -> list[dict[str, Any]]:
    """The prompt as OpenAI chat messages, pictures in their places as data URLs."""
    from drive_vlm.data.vision import picture_bytes
    from drive_vlm.judges.chat_client import image_part

    if sample.video:
        problem = "OpenAI-compatible servers take no video files"
        raise BadRow("no_video", sample.where, problem, "Write the frames as images, or use --backend hf")
    images = iter([image_part(path, picture_bytes(path, sample.where)) for path in sample.images])
    return [
        {
            "role": turn.role,
            "content": [next(images) if part == IMAGE else {"type": "text", "text": part} for part in turn.parts],
        }
        if turn.role == "user"
        else {"role": turn.role, "content": turn.text}
        for turn in sample.prompt_turns()
    ]
