"""DriveBench and RoboSense 2025 track 1: what their questions are, and the scores of answers by setting and question type.

Sources: worldbench/DriveBench (Xie et al., ICCV 2025, arXiv 2501.04003), commits 0911602624768263c3e477c3d69312d0fe60575c (settings) and
d8e1ab74f3844d7572eea97c5718f7dd33ae99fa, dee551ed7163fc0de8cbbbe167e4494db4ed18d3 (judge); the track's page
(robosense2025.github.io, commit 6493851e70c87a11cc4cf202c837b46256b4fd9a). From them:

- Multiple choice (yes and no included): the share of answers that equal the reference exactly. Neither repository holds code for it.
- VQA: a judge's "Total Score: N", 0 to 100, at temperature 0 with gpt-3.5-turbo; the track's page says 0 to 10 of its own judge.
- Track 1: final = 0.2 x the score on clean pictures + 0.8 x the score on corrupted ones. The score of a phase is the mean over all
  questions, of 100 x right or of the judge's score: the baseline's published 42.5 fits that mean, not the mean over the six question
  types, which is 41.15. The page's first version also named a "language-based score" without a weight; the final one gives it none, so
  ROUGE-L and METEOR stand beside the score.
- Drop from clean: a corruption's accuracy less that on the same questions with clean pictures.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from drive_vlm.evaluation.answers import Said, options_of, read_choice, read_yes_no
from drive_vlm.evaluation.choice_baselines import add_blind, add_guesses
from drive_vlm.evaluation.score_table import ScoreTable

VERSION = "worldbench/DriveBench@0911602, robosense2025 track 1@6493851"
CLEAN, NO_IMAGE, CORRUPTED = "clean", "noimage", "corrupted"
# Corruption -> its folder; the names are those of the benchmark's output files.
CORRUPTIONS = {
    "biterror": "BitError", "cameracrash": "CameraCrash", "fog": "Fog", "h256": "H256ABRCompression", "lowlight": "LowLight", "rain": "Rain",
    "snow": "Snow", "bright": "Brightness", "colorquant": "ColorQuant", "framelost": "FrameLost", "lens": "LensObstacleCorruption",
    "motion": "MotionBlur", "saturate": "Saturate", "zoom": "ZoomBlur", "water": "WaterSplashCorruption",
}  # fmt: skip
SETTINGS = (CLEAN, NO_IMAGE, *CORRUPTIONS)
# robust_qas: questions about the corruption itself; track 1 calls them corruption.
TASKS = ("perception", "prediction", "planning", "behavior", "robust_qas", "corruption")
MCQ, VQA = "mcq", "vqa"
OBJECT, SCENE = "object", "scene"
PHASES = {CLEAN: 0.2, CORRUPTED: 0.8}
# Questions of drivebench-test.json and of the track's first phase.
PUBLISHED = {"DriveBench": 1461, "RoboSense": 1396}

_TAG = re.compile(r"<c\d+\s*,\s*CAM_[A-Z_]+[^<>]*>")
_OPTIONS = re.compile(r"options?:|[?:]\s*A[.):]")
_CLOSED = re.compile(r"(?:is|are|will|would|does|do|can|could|should|has|have)\b", re.IGNORECASE)
_TOTAL = re.compile(r"Total Score\W*\s*(\d{1,3})\b(?!\.\d)")


def kind_of(question: str, answer: str = "", tag: Any = None) -> str:
    """MCQ or VQA: by the question's own tag (0: accuracy), else MCQ where it lists options or can only be answered by yes or no."""
    if isinstance(tag, list) and tag:
        return MCQ if 0 in tag else VQA
    if options_of(question):
        return MCQ
    closed = answer.rstrip(".").casefold() in ("yes", "no") if answer else _CLOSED.match(question) is not None
    return MCQ if closed else VQA


def scope_of(question: str) -> str:
    """OBJECT where the question names an object by its tag, else SCENE: the track's two types of VQA."""
    return OBJECT if _TAG.search(question) else SCENE


def parse_total(reply: str) -> int | None:
    """The judge's "Total Score: N", 0 to 100; None without it, beyond 100, and where two differ.

    >>> parse_total("4. Clarity: 10\\nTotal Score: 85\\nBrief Summary: fine"), parse_total("Total Score: 850")
    (85, None)
    """
    found = {int(number) for number in _TOTAL.findall(reply.replace("*", ""))}
    return found.pop() if len(found) == 1 and max(found) <= 100 else None


@dataclass(frozen=True)
class Item:
    """An answered question. `reference` is "" where the file hides it; `rating` 0-100, None where no judge's reply could be read."""

    question_id: str
    group: str
    setting: str
    task: str
    kind: str
    scope: str
    question: str
    reference: str
    prediction: str
    rating: float | None = None

    @property
    def type(self) -> str:
        """The question type of the track's table: "perception mcq", "planning vqa object"."""
        return f"{self.task} {self.kind}" + (f" {self.scope}" if self.kind == VQA else "")

    @cached_property
    def options(self) -> dict[str, str]:
        return options_of(self.question)

    def read(self, text: str) -> Said[Any]:
        """What a text chooses: a letter, or True and False of a question without options."""
        return read_choice(text, self.options) if self.options else read_yes_no(text)

    @property
    def template(self) -> str:
        """The question without its objects and options: what questions of one kind share."""
        stem = _OPTIONS.split(_TAG.sub("<object>", self.question))[0].strip()
        return f"{self.task} {stem}"

    @cached_property
    def gold(self) -> Said[Any]:
        """The choice that the reference names."""
        return self.read(self.reference)

    @cached_property
    def said(self) -> Said[Any]:
        """The choice that the prediction names."""
        return self.read(self.prediction)

    @property
    def strict(self) -> bool:
        """Right by the official rule: the very text of the reference."""
        return self.prediction == self.reference

    @property
    def lenient(self) -> bool:
        """Right by what the prediction means."""
        return self.said.read and self.said.value == self.gold.value


def usable_choices(items: Sequence[Item], table: ScoreTable) -> list[Item]:
    """The MCQs whose reference names a choice; the others are said to be missing in `table`."""
    choices = [item for item in items if item.kind == MCQ]
    kept = [item for item in choices if item.reference and item.gold.read]
    if lost := len(choices) - len(kept):
        table.partial.append(f"{lost:,} of {len(choices):,} multiple-choice rows have no reference that names a choice")
    return kept


def add_accuracy(table: ScoreTable, items: Sequence[Item]) -> None:
    """Strict and lenient accuracy of MCQs by setting and question type, and how many rows the two readings judge differently."""
    choices = usable_choices(items, table)
    for name, part in _parts(choices).items():
        said, gold = [item.said for item in part], [item.gold.value for item in part]
        table.add_choices(name, [item.strict for item in part], said, gold, [item.group for item in part])
    table.unread += sum(not item.said.read for item in choices)
    table.differ = sum(item.strict != item.lenient for item in choices)


def _parts(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by "setting all" and by "setting type", settings and tasks in the benchmark's order."""
    places = {name: place for place, name in enumerate((*SETTINGS, CORRUPTED))}
    parts: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: (places[item.setting], TASKS.index(item.task), item.scope)):
        parts.setdefault(f"{item.setting}: all {item.kind}", []).append(item)
        parts.setdefault(f"{item.setting}: {item.type}", []).append(item)
    return parts


def add_texts(table: ScoreTable, items: Sequence[Item], wordnet: Any | None, judged: bool) -> None:
    """ROUGE-L, METEOR and the judge's rating of the VQA rows by setting and question type."""
    from drive_vlm.evaluation.meteor import meteor
    from drive_vlm.evaluation.text_overlap import rouge_l, tokenize

    answers = [item for item in items if item.kind == VQA and item.reference]
    if lost := sum(item.kind == VQA and not item.reference for item in items):
        table.partial.append(f"{lost:,} VQA rows have no reference")
    if not answers:
        return
    texts, wanted = [item.prediction for item in answers], [[item.reference] for item in answers]
    rouge = rouge_l([tokenize(text) for text in texts], [[tokenize(text) for text in found] for found in wanted])
    name, scores = meteor(texts, wanted, wordnet)
    columns: dict[str, dict[int, float | None]] = {
        "ROUGE-L": dict(zip(map(id, answers), rouge, strict=True)),
        name: dict(zip(map(id, answers), scores, strict=True)),
    }
    if judged:
        ratings = {id(item): None if item.rating is None else item.rating / 100 for item in answers}
        columns = {"judge": ratings, **columns}
    else:
        table.partial.append("no judge: the VQA rows have no score of the benchmark, only text overlap")
    for metric, values in columns.items():
        for part, found in _parts(answers).items():
            table.add(f"{part}, {metric}", [values[id(item)] for item in found], [item.group for item in found])


def add_challenge(table: ScoreTable, items: Sequence[Item]) -> float | None:
    """The track's score of each phase, and 0.2 clean + 0.8 corrupted where both are there and every question has its score. Rows of
    all corruptions count as the second phase."""
    known = [item for item in items if item.reference and item.setting != NO_IMAGE]
    found: dict[str, float] = {}
    for phase in PHASES:
        part = [item for item in known if (item.setting == CLEAN) == (phase == CLEAN)]
        values = [_points(item) for item in part]
        if not part:
            continue
        score = table.add(f"track 1, {phase} phase", values, [item.group for item in part])
        if score.value is not None and None not in values:
            found[phase] = score.value
    if set(found) != set(PHASES):
        lacks = [phase for phase in PHASES if phase not in found]
        table.partial.append(
            f"no final score of track 1: not every question of {' and '.join(lacks)} pictures has a score"
        )
        return None
    return sum(weight * found[phase] for phase, weight in PHASES.items())


def _points(item: Item) -> float | None:
    if item.kind == MCQ:
        return float(item.strict)
    return None if item.rating is None else item.rating / 100


def add_drops(table: ScoreTable, items: Sequence[Item]) -> None:
    """Each setting's accuracy less the clean one's, question by question, strict and lenient, and the same of the judge's ratings."""
    clean = {item.question_id: item for item in items if item.setting == CLEAN}
    for setting in (*SETTINGS[1:], CORRUPTED):
        pairs = [(clean[new.question_id], new) for new in items if new.setting == setting and new.question_id in clean]
        choices = [(a, b) for a, b in pairs if a.kind == MCQ and a.reference == b.reference and a.gold.read]
        if choices:
            groups = [before.group for before, _ in choices]
            for rule in ("strict", "lenient"):
                old, new = ([float(getattr(pair[side], rule)) for pair in choices] for side in (0, 1))
                table.add_change(f"{setting} - clean, mcq {rule}", old, new, groups)
        rated = [
            (a.rating / 100, b.rating / 100, a.group)
            for a, b in pairs
            if a.kind == VQA and a.rating is not None and b.rating is not None
        ]
        if rated:
            before, after, scenes = map(list, zip(*rated, strict=True))
            table.add_change(f"{setting} - clean, judge", before, after, scenes)


def add_baselines(
    table: ScoreTable, items: Sequence[Item], known: Sequence[Item], blind: Mapping[str, str] | None
) -> None:
    """What no look earns on the MCQs of every setting but noimage: the option whose words are most often right for the question's
    template among `known` questions, chance, and the answers of a model to blank pictures ({question_id: answer})."""
    choices = [item for item in items if item.kind == MCQ and item.setting != NO_IMAGE and item.gold.read]
    if not choices:
        return
    own = known is items
    add_guesses(table, choices, None if own else [item for item in known if item.kind == MCQ])
    if blind is not None:
        seen = [item for item in choices if item.question_id in blind]
        add_blind(table, seen, [item.read(blind[item.question_id]) for item in seen], len(choices))
