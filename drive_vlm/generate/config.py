"""The flags of `python -m drive_vlm generate`."""

import dataclasses

from drive_vlm.config import field, image_root_field, links_field
from drive_vlm.data.videos import MODES
from drive_vlm.sampling.local import Sampling


@dataclasses.dataclass
class GenerateConfig:
    """What to answer, how, and where the answers go."""

    data: list[str] = field(
        help="rows to answer: .jsonl, .json, .parquet or the folder of a data set; with --mode also videos, folders of frames, and "
        "folders with both"
    )
    out: str = field(help="predictions JSONL; rows that are in it already are not answered again")
    image_root: str | None = image_root_field()
    links: str = links_field()
    mode: str | None = field(
        None,
        help="ask about videos: detailed or concise, each with its instruction in place of the rows' own question; rows of "
        "another mode are left out",
        choices=tuple(MODES),
    )
    batch_size: int = field(16, help="rows answered at a time", least=1)
    max_new_tokens: int = field(128, help="tokens of an answer, at most", least=1)
    temperature: float = field(0.0, help="0 takes the likeliest token, above 0 samples", least=0)
    top_p: float = field(
        1.0,
        help="nucleus of sampling: the likeliest tokens that have this share of the probability together",
        least=0.001,
        most=1,
    )
    seed: int = field(0, help="seed of sampling")
    num_frames: int = field(8, help="frames taken from a video, evenly spread", least=1)
    feature_cache: str | None = field(
        None,
        help="folder of tools/cache_features.py: answer from the vision tower's features; no picture is decoded, no tower runs",
    )
    limit: int | None = field(None, help="answer the first N rows only", least=1)
    shard: str | None = field(
        None,
        help="I/N: answer the I-th of N equal runs of rows (from 0) into a file of its own, e.g. out.shard-02-of-08.jsonl",
    )
    blank_images: bool = field(False, help="replace every picture by a grey one of the same size: the blind baseline")
    shuffle_frames: bool = field(
        False,
        help="show the frames of each video in a random order, fixed by the row's id: what a model answers without the order of events",
    )
    json_schema: str | None = field(
        None,
        help="JSON schema that every answer must follow: tokens that break it are left out (in process), or it is sent to the server; "
        "the summary counts the answers that follow it",
    )
    json_free: bool = field(
        False, help="let the model write freely, and only count the answers that follow --json_schema"
    )
    on_bad_row: str = field(
        "error", help="error: stop at a bad row; skip: leave it out and count it", choices=("error", "skip")
    )
    backend: str = field("hf", help="hf: this process; openai: any OpenAI-compatible server", choices=("hf", "openai"))
    base_url: str | None = field(None, help="address of the server, e.g. http://localhost:8000/v1")
    api_key_env: str = field("OPENAI_API_KEY", help="environment variable that holds the server's key")
    workers: int = field(8, help="requests to the server at a time", least=1)

    def sampling(self) -> Sampling:
        return Sampling(**{item.name: getattr(self, item.name) for item in dataclasses.fields(Sampling)})
