"""Rewritten captions as split-entry rows: one video, one row for each mode, asked for by the mode's instruction."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from drive_vlm.builders.rewrites import words
from drive_vlm.builders.splits import find_leaks
from drive_vlm.builders.video_captions import VideoCaption
from drive_vlm.data.videos import MODES, RAW_CAPTION


@dataclass
class Rewrite:
    """What came of one caption in one mode: a text, or the reason why there is none.

    Attributes:
        reason: of the last attempt; "" when there is a text.
        problem: the server's words, for a request that it refused.
        retries: reasons of the attempts that were asked again.
        prompt_tokens, reply_tokens: of all attempts, from the cache or not.
    """

    text: str | None = None
    reason: str = ""
    problem: str = ""
    new_nouns: list[str] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    reply_tokens: int = 0


def row_of(caption: VideoCaption, kind: str, question: str, answer: str, **columns: Any) -> dict[str, Any]:
    """A video row of the data contract."""
    turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
    head = {"id": f"{caption.id}-{kind}", "video": caption.video, "conversations": turns, "group": caption.group}
    return head | columns


def rows_of(
    captions: list[VideoCaption], rewrites: list[dict[str, Rewrite]], held_out: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """File name -> rows."""
    files: dict[str, list[dict[str, Any]]] = {
        f"{kind}_{split}.jsonl": [] for kind in ("split_entry", "raw_captions") for split in ("train", "test")
    }
    for caption, found in zip(captions, rewrites, strict=True):
        split = "test" if caption.group in held_out else "train"
        raw = row_of(caption, "raw", caption.question or RAW_CAPTION, caption.caption)
        files[f"raw_captions_{split}.jsonl"].append(raw)
        for mode, rewrite in found.items():
            if rewrite.text is not None:
                row = row_of(caption, mode, MODES[mode], rewrite.text, mode=mode, new_nouns=rewrite.new_nouns)
                files[f"split_entry_{split}.jsonl"].append(row)
    return files


def audit_of(
    captions: list[VideoCaption], rewrites: list[dict[str, Rewrite]], files: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """What happened to the captions: sizes, what was left out or asked again and why, new nouns, leaks."""
    modes = {mode: _mode_audit(captions, [found[mode] for found in rewrites]) for mode in MODES}
    both = [(found["detailed"].text, found["concise"].text) for found in rewrites]
    ratios = [words(short) / words(long) for long, short in both if long and short]
    splits = {
        split: [row for name, rows in files.items() if f"_{split}." in name for row in rows]
        for split in ("train", "test")
    }
    return {
        "captions": len(captions),
        "caption_words": spread([words(caption.caption) for caption in captions]),
        "videos": len({caption.video for caption in captions}),
        "held_out": sorted({row["group"] for row in splits["test"]}),
        "rows": {name: len(rows) for name, rows in files.items()},
        "modes": modes,
        "concise_to_detailed": spread(ratios),
        "leaks": [str(leak) for leak in find_leaks(splits)],
    }


def _mode_audit(captions: list[VideoCaption], rewrites: list[Rewrite]) -> dict[str, Any]:
    kept = [rewrite for rewrite in rewrites if rewrite.text is not None]
    lost: dict[str, list[str]] = {}
    for caption, rewrite in zip(captions, rewrites, strict=True):
        if rewrite.text is None:
            lost.setdefault(rewrite.reason, []).append(caption.id)
    nouns = Counter(noun for rewrite in kept for noun in rewrite.new_nouns)
    return {
        "written": len(kept),
        "left_out": {reason: {"count": len(ids), "ids": ids} for reason, ids in sorted(lost.items())},
        "asked_again": dict(Counter(reason for rewrite in rewrites for reason in rewrite.retries)),
        "words": spread([words(rewrite.text or "") for rewrite in kept]),
        "new_nouns": {
            "rows": sum(bool(rewrite.new_nouns) for rewrite in kept),
            "total": nouns.total(),
            "most": dict(nouns.most_common(20)),
        },
    }


def spread(values: list[Any]) -> dict[str, float] | None:
    """Smallest, median and largest of `values`."""
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None
