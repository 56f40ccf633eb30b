"""A look at the training rows: how many, which cannot be used, how long; a sample only, in a second."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from drive_vlm.config import DataConfig
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.plan.architecture import Architecture, Pictures

SAMPLE = 200
_TURN = 5  # tokens that a chat template adds to a turn, about; counted where it is ChatML
_PICTURE = 3  # begin, end and a newline


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is known of the rows; `tokens` typical and `longest` of the sample, `tiles` of a typical row."""

    count: int | None
    tokens: int
    tiles: int
    labels: int
    longest: int | None
    source: str
    audit: dict[str, Any] | None
    missing: tuple[str, ...] = ()


def typical_row(
    data: DataConfig,
    architecture: Architecture,
    given: int | None,
    max_tiles: int | None,
    model: str,
    kind: str = "rows",
) -> Rows:
    """Of `kind` "pairs" the longer side, of "prompts" all turns but the last answer. Rows of --data where they exist, else a picture with its full tiles (or a video) and 256 tokens of text, 64 of them learned."""
    missing = tuple(path for path in data.data if not Path(path).is_file())
    if data.data and len(missing) < len(data.data):  # a file of several that is missing is an error there
        return _sample(data, architecture, given, max_tiles, model, kind)
    pictures = architecture.pictures
    tiles = pictures.tiles
    if max_tiles and not pictures.video:
        tiles = min(tiles, max_tiles + (max_tiles > 1))
    tokens = given or min(data.max_length, tiles * pictures.tokens + 256)
    what = f"a video of {tiles} frames" if pictures.video else f"one picture of {tiles} tiles"
    source = "--row_tokens" if given else f"assumed: {what} x {pictures.tokens} tokens and 256 of text"
    return Rows(None, tokens, tiles, min(64, tokens), None, source, None, missing)


def _sample(
    data: DataConfig, architecture: Architecture, given: int | None, max_tiles: int | None, model: str, kind: str
) -> Rows:
    """Rows evenly spread over all files: parsed, picture headers read, tokens counted or estimated."""
    from drive_vlm.data.preference.pair_encoding import sides_of
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import audit_bad_rows, read_sample

    sources = open_sources(data.data, data.image_root)
    total = sum(len(source.rows) for source in sources)
    tokenizer = _tokenizer(Path(model))
    lengths, tiles, labels, bad = [], [], [], []
    for source in sources:
        looked = min(len(source.rows), max(1, SAMPLE * len(source.rows) // max(1, total)))
        for i in (k * len(source.rows) // looked for k in range(looked)):
            try:
                sample = read_sample(source, i, need_answer=kind == "rows")
                sides = sides_of(sample) if kind == "pairs" else (sample,)
                if kind == "prompts":
                    sides = (dataclasses.replace(sample, turns=sample.prompt_turns()),)
                pieces, limit = _tiles(sample, architecture.pictures, source.max_tiles or max_tiles, data.num_frames)
            except BadRow as error:
                bad.append(error)
                continue
            words, learned = max(_words(side, tokenizer) for side in sides)
            pictures = pieces * architecture.pictures.tokens + _PICTURE * (
                pieces if sample.video else len(sample.images)
            )
            lengths.append(words + pictures)
            tiles.append(pieces)
            labels.append(learned)
            limit_used = limit
    if not lengths:
        raise ValueError(
            f"{data.data[0]}: none of {len(bad)} sampled rows can be used: {bad[0] if bad else 'the file is empty'}"
        )
    used = sum(round(len(source.rows) * source.repeat_time) for source in sources)
    how = "the model's tokenizer" if tokenizer else "3.5 letters a token"
    audit = {
        "rows": total,
        "sampled": len(lengths) + len(bad),
        "tokens": {
            "median": _middle(lengths),
            "max": max(lengths),
            "counted_by": how,
            "tiles_a_picture_at_most": limit_used,
        },
        "longer_than_max_length": sum(length > data.max_length for length in lengths),
        "bad_rows": audit_bad_rows(bad),
    }
    mean = given or min(data.max_length, round(sum(lengths) / len(lengths)))
    source_text = "--row_tokens" if given else f"mean of {len(lengths)} sampled rows ({how})"
    return Rows(used, mean, round(_mean(tiles)), round(_mean(labels)), max(lengths), source_text, audit)


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def _middle(numbers: list[int]) -> int:
    return sorted(numbers)[len(numbers) // 2]


def _tokenizer(directory: Path) -> Any:
    """The model's own fast tokenizer where it lies beside the weights."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _words(sample: Sample, tokenizer: Any) -> tuple[int, int]:
    """(tokens of all turns, tokens of the assistant's) without pictures."""
    counts = {"all": 0, "learned": 0}
    for turn in sample.turns:
        text = turn.text
        tokens = len(tokenizer.encode(text, add_special_tokens=False).ids) if tokenizer else round(len(text) / 3.5)
        frame = _TURN
        if tokenizer and tokenizer.token_to_id("<|im_start|>") is not None:
            frame = len(tokenizer.encode(f"<|im_start|>{turn.role}\n<|im_end|>\n", add_special_tokens=False).ids)
        counts["all"] += tokens + frame
        counts["learned"] += tokens + 1 if turn.role == "assistant" else 0
    return counts["all"], counts["learned"]


def _tiles(sample: Sample, pictures: Pictures, max_tiles: int | None, num_frames: int) -> tuple[int, int]:
    """(tiles of a row, tiles of one picture at most); headers are read, so that a missing picture is seen."""
    from drive_vlm.data.vision import checked_image_size, video_length

    if sample.video:
        return min(video_length(sample.video, sample.where), num_frames), 1
    most = 1 if pictures.video else max_tiles or max(1, pictures.tiles - 1)
    limit = max(1, most // max(1, len(sample.images)))
    sizes = [checked_image_size(path, sample.where) for path in sample.images]
    return sum(grid_tiles(height, width, limit, pictures) for height, width in sizes), limit


def grid_tiles(height: int, width: int, limit: int, pictures: Pictures) -> int:
    """Tiles of a picture: the grid of at most `limit` tiles with the nearest aspect ratio, and a thumbnail with several.

    On a tie the larger grid wins if the picture has more than half its pixels (InternVL's rule).
    """
    side = round((pictures.pixels / 3) ** 0.5)
    grids = sorted(
        {(i, j) for i in range(1, limit + 1) for j in range(1, limit + 1) if i * j <= limit},
        key=lambda grid: grid[0] * grid[1],
    )
    best, nearest_ratio = (1, 1), float("inf")
    for columns, lines in grids:
        distance = abs(width / height - columns / lines)
        if distance < nearest_ratio:
            best, nearest_ratio = (columns, lines), distance
        elif distance == nearest_ratio and height * width > 0.5 * side * side * columns * lines:
            best = (columns, lines)
    number = best[0] * best[1]
    return number + (number > 1)


def audit_line(audit: dict[str, Any]) -> str:
    """The audit in one line."""
    tokens = audit["tokens"]
    reasons = json.dumps(audit["bad_rows"]["by_reason"]) if audit["bad_rows"]["total"] else "none"
    return (
        f"{audit['rows']:,} rows, {audit['sampled']} looked at: bad {reasons}; tokens median {tokens['median']:,}, "
        f"max {tokens['max']:,} (by {tokens['counted_by']}); longer than --max_length: {audit['longer_than_max_length']}"
    )
