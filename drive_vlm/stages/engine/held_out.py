"""The rows of --eval_generate: read, checked and compared with the training rows before a run; their batches and their scores."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.builders.checks import leaks_between
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.predictions import Answer, parse_prediction, prediction_row
from drive_vlm.data.samples import Sample
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import RowTable, build_table
from drive_vlm.data.videos import is_media
from drive_vlm.evaluation.answer_metrics import METRICS, Score, check_rows
from drive_vlm.generate.config import GenerateConfig
from drive_vlm.generate.rows import read_rows
from drive_vlm.sampling.local import Sampling, batches_of
from drive_vlm.sampling.vision import vision_taker
from drive_vlm.stages.engine.stage import StageFlags

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from drive_vlm.data.caches.feature_cache import FeatureCache
    from drive_vlm.models.family import Family


class HeldOut:
    """Rows that a training answers at each evaluation. Every rank has all of them, and answers its share.

    Attributes:
        samples: the usable rows in the order of their files.
        table: the same rows as data_audit.json counts them.
        batches: of `samples`, the same however many ranks there are.
        encoder, take_vision: make prompts of rows, and the vision tensors of a batch of them.
        sampling: the likeliest token each time.
    """

    def __init__(
        self, flags: StageFlags, family: "Family", features: "FeatureCache | None", args: "TrainingArguments"
    ) -> None:
        """Raises ValueError for rows that a metric cannot score, BadRow with --on_bad_row error."""
        self._flags, data = flags.scores, flags.data
        paths = self._flags.eval_generate
        if videos := [path for path in paths if is_media(path)]:
            raise ValueError(
                f"--eval_generate {videos[0]} is a video or a folder of frames: give a file of rows with questions and answers."
            )
        self.encoder = Encoder(family.tokenizer, family.template, family.vision, data.num_frames, features=features)
        self.take_vision, _ = vision_taker(family, data)
        self.sampling = Sampling(max_new_tokens=self._flags.eval_max_new_tokens, on_bad_row=data.on_bad_row)
        self.table = build_table(
            open_sources(paths, data.image_root, data.links), self.encoder, data.on_bad_row, need_answer=False
        )
        samples, bad = read_rows(
            GenerateConfig(data=paths, out="", image_root=data.image_root, links=data.links, on_bad_row=data.on_bad_row)
        )
        known = {row.where for row in self.table.bad}
        # Those that are named twice.
        self.table.bad += [row for row in bad if row.where not in known]
        self.samples = [sample for sample in samples if sample.where not in known]
        rows = [prediction_row(sample, "") for sample in self.samples]
        check_rows(self._flags.eval_metric, rows, [sample.where for sample in self.samples])
        if features is not None and args.local_process_index == 0:
            features.check(self.table.media())
        self.batches = batches_of(self.samples, args.per_device_eval_batch_size)

    def warn_of_leaks(self, train: RowTable) -> None:
        """A line where ids, groups or pictures of the rows are those of training rows, as tools/check_data.py finds them."""
        if not (leaks := leaks_between(train, self.table)):
            return
        kinds = ", ".join(f"{count:,} of {kind}" for kind, count in Counter(leak.kind for leak in leaks).items())
        print(
            f"warning: --eval_generate shares values with --data ({kinds}; {leaks[0].kind} {leaks[0].value}). Its scores say less about "
            "new rows than they seem to. tools/check_data.py --eval_data lists them.",
            file=sys.stderr,
            flush=True,
        )

    def figures(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """What the log says of answered prediction rows: of each metric its value, interval, rows, and unread answers."""
        groups = [parse_prediction(row, str(row["id"])).group for row in rows]
        found: dict[str, float] = {}
        for name in self._flags.eval_metric if rows else ():
            found |= _figures(f"eval_{name}", METRICS[name].score(rows, groups), len(rows))
        return found

    def shown(self, answers: dict[tuple[str, str], Answer]) -> list[tuple[Sample, str]]:
        """Rows for people to look at, spread over the file, the same ones each time."""
        step = max(1, len(self.samples) // max(1, self._flags.eval_samples))
        chosen = self.samples[::step][: self._flags.eval_samples]
        return [(sample, answers[sample.key].text) for sample in chosen if sample.key in answers]


def _figures(name: str, score: Score, rows: int) -> dict[str, float]:
    given = score.estimate
    found = {name: given.value, f"{name}_low": given.low, f"{name}_high": given.high, f"{name}_rows": float(rows)}
    if score.unread is not None:
        found[f"{name}_unread"] = float(score.unread)
    found |= {f"{name}_{end}": value for end, value in score.more.items()}
    # A tracker takes numbers only: what is not defined is left out.
    return {key: value for key, value in found.items() if value is not None}


def open_held_out(
    flags: StageFlags,
    family: "Family",
    features: "FeatureCache | None",
    args: "TrainingArguments",
    train: RowTable,
) -> HeldOut | None:
    """The rows of --eval_generate; None without. Raises ValueError as HeldOut does."""
    if not flags.scores.eval_generate:
        return None
    with args.main_process_first(local=True, desc="held-out rows"):
        held_out = HeldOut(flags, family, features, args)
    if args.should_save:
        held_out.warn_of_leaks(train)
    return held_out
