"""A look at the training rows: how many, which cannot be used, how long; a sample only, in a second."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import DataConfig
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.turns import one_row
from drive_vlm.models.vision import tiles_in
from drive_vlm.plan.model_sizes import ModelSizes
from drive_vlm.stages.engine.stage import Kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE = 200
# Tokens that a chat template adds to a turn, about; counted where it is ChatML.
_TURN = 5
# The newline after a picture; all other tokens of a picture are the tiling's.
_NEWLINE = 1


@dataclasses.dataclass(frozen=True)
class RowStatistics:
    """What is known of the rows; `tokens`, `tiles` and `labels` are those of a typical row, `longest` that of the sample."""

    count: int | None
    tokens: int
    tiles: int
    labels: int
    longest: int | None
    source: str
    audit: dict[str, Any] | None
    missing: tuple[str, ...] = ()


def typical_row(
    data: DataConfig, model: ModelSizes, given: int | None, directory: str, kind: Kind = "rows"
) -> RowStatistics:
    """Estimate a typical row from --data, or assume one picture (or video) and 256 tokens of text, 64 of them learned.

    `given` is --row_tokens, `directory` the model's, whose tokenizer counts where it is there. Of "pairs" the longer answer
    counts, "prompts" end before their last answer. Raises ValueError where no sampled row can be used.
    """
    missing = tuple(path for path in data.data if not Path(path).exists())
    # A file of several that is missing is an error where the files are opened.
    if data.data and len(missing) < len(data.data):
        return _sample(data, model, given, directory, kind)
    pictures = model.pictures
    # At its own resolution the largest picture is longer than any row may be: one that fills --max_length is assumed.
    own = model.tiling is not None and model.tiling.limits is not None
    tiles = min(pictures.tiles, data.max_length // pictures.tokens) if own else pictures.tiles
    tokens = given or min(data.max_length, tiles * pictures.tokens + 256)
    what = f"a video of {tiles} frames" if pictures.video else f"one picture of {tiles} tiles"
    source = "--row_tokens" if given else f"assumed: {what} x {pictures.tokens} tokens and 256 of text"
    return RowStatistics(None, tokens, tiles, min(64, tokens), None, source, None, missing)


def _sample(data: DataConfig, model: ModelSizes, given: int | None, directory: str, kind: Kind) -> RowStatistics:
    """Rows evenly spread over all files: parsed, picture headers read, tokens counted or estimated."""
    from drive_vlm.data.preference.pair_encoding import sides_of
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import audit_bad_rows, read_sample

    sources = open_sources(data.data, data.image_root, data.links)
    total = sum(len(source.rows) for source in sources)
    tokenizer = _tokenizer(Path(directory))
    lengths, tiles, labels, bad = [], [], [], []
    for source in sources:
        looked = min(len(source.rows), max(1, SAMPLE * len(source.rows) // max(1, total)))
        for i in (k * len(source.rows) // looked for k in range(looked)):
            try:
                sample = read_sample(source, i, need_answer=kind == "rows")
                with one_row(sample.where):
                    sides = sides_of(sample) if kind == "pairs" else (sample,)
                    if kind == "prompts":
                        sides = (dataclasses.replace(sample, turns=sample.prompt_turns()),)
                    pieces, seen = picture_tokens(sample, model, source.max_tiles, data.num_frames)
                    words, learned = max(_words(side, tokenizer) for side in sides)
            except BadRow as error:
                bad.append(error)
                continue
            lengths.append(words + seen)
            tiles.append(pieces)
            labels.append(learned)
    if not lengths:
        raise ValueError(
            f"{data.data[0]}: none of {len(bad)} sampled rows can be used: {bad[0] if bad else 'the file is empty'}"
        )
    used = sum(round(len(source.rows) * source.repeat_time) for source in sources)
    how = "the model's tokenizer" if tokenizer else "3.5 letters a token"
    audit = {
        "rows": total,
        "sampled": len(lengths) + len(bad),
        "tokens": {"median": sorted(lengths)[len(lengths) // 2], "max": max(lengths), "counted_by": how},
        "longer_than_max_length": sum(length > data.max_length for length in lengths),
        "bad_rows": audit_bad_rows(bad),
    }
    tokens, row_tiles, learned_tokens = (round(sum(numbers) / len(numbers)) for numbers in (lengths, tiles, labels))
    source_text = "--row_tokens" if given else f"mean of {len(lengths)} sampled rows ({how})"
    typical = given or min(data.max_length, tokens)
    return RowStatistics(used, typical, row_tiles, learned_tokens, max(lengths), source_text, audit)


def picture_tokens(sample: Sample, model: ModelSizes, max_tiles: int | None, num_frames: int) -> tuple[int, int]:
    """(tiles, tokens) of all pictures of a row. Only headers are read, so that a missing picture is noticed. Raises BadRow."""
    from drive_vlm.data.video_times import video_layouts
    from drive_vlm.data.vision import checked_image_size

    if model.tiling is None:
        return 0, 0
    if sample.video:
        layouts = video_layouts(model.tiling, sample.video, num_frames, sample.where)
    else:
        sizes = [checked_image_size(path, sample.where) for path in sample.images]
        layouts = [model.tiling.layout(*size, len(sizes), max_tiles) for size in sizes]
    return sum(map(tiles_in, layouts)), sum(model.tiling.tokens(layout) + _NEWLINE for layout in layouts)


def _tokenizer(directory: Path) -> "Tokenizer | None":
    """The model's own fast tokenizer where it lies next to the weights."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _words(sample: Sample, tokenizer: "Tokenizer | None") -> tuple[int, int]:
    """(tokens of all turns, tokens of the assistant's) without pictures."""
    everything = learned = 0
    for turn in sample.turns:
        text, frame = turn.text, _TURN
        tokens = len(tokenizer.encode(text, add_special_tokens=False).ids) if tokenizer else round(len(text) / 3.5)
        if tokenizer and tokenizer.token_to_id("<|im_start|>") is not None:
            frame = len(tokenizer.encode(f"<|im_start|>{turn.role}\n<|im_end|>\n", add_special_tokens=False).ids)
        everything += tokens + frame
        learned += tokens + 1 if turn.role == "assistant" and turn.learned else 0
    return everything, learned


def audit_line(audit: dict[str, Any]) -> str:
    """The audit in one line."""
    tokens = audit["tokens"]
    reasons = json.dumps(audit["bad_rows"]["by_reason"]) if audit["bad_rows"]["total"] else "none"
    return (
        f"{audit['rows']:,} rows, {audit['sampled']} looked at: bad {reasons}; tokens median {tokens['median']:,}, "
        f"max {tokens['max']:,} (by {tokens['counted_by']}); longer than --max_length: {audit['longer_than_max_length']}"
    )
