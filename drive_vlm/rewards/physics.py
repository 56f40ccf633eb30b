"""The physics-aware reward of Drive-VLM: does a detector confirm what a text says about a drive?

    R = 0.4 R_obj + 0.25 R_temp + 0.20 R_detail + 0.15 R_hall            (weights by flag; each term is in 0..1)

The paper gives the four terms and weights; caps and normalisation are ours. A text claims *objects*: the classes that it
names, and general words next to them (drive_vlm/rewards/text/driving_words.yaml). D are the classes that the detector saw in any
sampled frame. Denied objects ("no cars") and what no detector sees (road, traffic cone) are not claims.

R_obj = F1 = 2 P R / (P + R).
    P = verified claims / claims. A class is verified when it is in D, a general word (vehicle, bike) when one of its
        classes is in D. A general word next to a named class of its own ("a car ... the vehicle") is not a further claim.
    R = found / wanted. Found: the verified classes, 1 for a word that detectors label in different ways (van), 0.5 for a
        hypernym (vehicle: true, but vague), each for a class of D that nothing else has found. Wanted: the classes of D,
        without those that a driving description need not name (optional_classes), plus the optional ones it found.
R_hall = 1 - |claims not verified| / |claims|, over the claims about safety-critical classes. None made: 0.
R_temp = min(1, density / reference density): connectives (then, after) and dynamic verbs (turning) a word. The words are
    those of the longer of text and reference, so that a few words cannot buy density; the reference's density is its own.
R_detail = min(1, adjectives / the reference's adjectives). The reference is the one of the same mode.
    In both, one word counts at most twice (driving_text.REPEATS), and a reference that has none gives 0: nothing is to be
    earned there, for any text of the group alike. Such references are counted.

A text that claims no object is *unverified*: R_obj = R_hall = 0, and it is counted. An empty text gets 0 throughout.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from drive_vlm.config import field
from drive_vlm.data.samples import Sample
from drive_vlm.rewards.detections import DetectionCache
from drive_vlm.rewards.text import completion_text
from drive_vlm.rewards.text.driving_text import DEFAULT_MODEL, ParsedText, TextParser
from drive_vlm.rewards.text.vocabulary import DEFAULT, Term, Vocabulary

HYPERNYM_RECALL = 0.5
TERMS = ("object", "temporal", "detail", "hallucination")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of the four terms, as the paper has them."""

    object: float = 0.4
    temporal: float = 0.25
    detail: float = 0.20
    hallucination: float = 0.15

    def __post_init__(self) -> None:
        values = dataclasses.astuple(self)
        if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            raise ValueError(f"weights {list(values)}: four numbers of at least 0, not all 0 ({', '.join(TERMS)})")


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """The reward of one text and what it is made of.

    Attributes:
        reward: the weighted sum.
        object, temporal, detail, hallucination: the terms, in 0..1 (hallucination: 1 means that nothing is made up).
        precision, recall: of the object term.
        claims, verified: number of object claims, and of those that the detector confirms (general words included).
        found, wanted: credit for detected classes that the text accounts for, and their number: recall = found / wanted.
        false_claims: what is claimed and was not detected: class names, and general words in brackets.
        missed: detected classes that the text should have named and did not.
        unverified: the text claims no object.
        no_reference: terms for which the reference has nothing to compare with.
    """

    reward: float
    object: float
    temporal: float
    detail: float
    hallucination: float
    precision: float
    recall: float
    claims: int
    verified: int
    found: float
    wanted: int
    false_claims: tuple[str, ...]
    missed: tuple[str, ...]
    unverified: bool
    no_reference: tuple[str, ...]
    words: int


def terms(
    text: ParsedText,
    reference: ParsedText,
    detected: frozenset[str],
    vocabulary: Vocabulary,
    weights: Weights = Weights(),
    hallucination_over: frozenset[str] | None = None,
) -> Terms:
    """Score one parsed text; pure. `hallucination_over`: classes of R_hall (default: the vocabulary's safety-critical)."""
    critical = vocabulary.safety_critical if hallucination_over is None else hallucination_over
    hits = text.classes & detected
    true_groups = [term for term in text.groups if term.classes & detected]
    claims = len(text.classes) + len(text.groups)
    verified = len(hits) + len(true_groups)
    found, credit = _found(hits, true_groups, detected)
    wanted = (detected - vocabulary.optional) | found
    precision = verified / claims if claims else 0.0
    recall = credit / len(wanted) if wanted else 0.0
    values = {
        "object": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "temporal": _temporal(text, reference),
        "detail": min(1.0, text.details / reference.details) if reference.details else 0.0,
        "hallucination": _hallucination(text, detected, critical),
    }
    false = [*sorted(text.classes - detected), *(f"({term.phrase})" for term in text.groups if term not in true_groups)]
    return Terms(
        reward=sum(getattr(weights, name) * value for name, value in values.items()),
        **values,
        precision=precision,
        recall=recall,
        claims=claims,
        verified=verified,
        found=credit,
        wanted=len(wanted),
        false_claims=tuple(false),
        missed=tuple(sorted(wanted - found)),
        unverified=not text.names_objects,
        no_reference=tuple(
            name for name, n in (("temporal", reference.temporal), ("detail", reference.details)) if not n
        ),
        words=text.words,
    )


def _found(hits: frozenset[str], groups: Sequence[Term], detected: frozenset[str]) -> tuple[frozenset[str], float]:
    """Detected classes that the text accounts for, and their credit: general words each take one that is left."""
    found, credit = set(hits), float(len(hits))
    for term in groups:
        left = sorted(term.classes & detected - found)
        if left:
            found.add(left[0])
            credit += HYPERNYM_RECALL if term.kind == "hypernym" else 1.0
    return frozenset(found), credit


def _hallucination(text: ParsedText, detected: frozenset[str], critical: frozenset[str]) -> float:
    classes = text.classes & critical
    groups = [term for term in text.groups if term.classes & critical]
    claims = len(classes) + len(groups)
    false = len(classes - detected) + sum(not term.classes & detected for term in groups)
    return 1 - false / claims if claims else 0.0


def _temporal(text: ParsedText, reference: ParsedText) -> float:
    if not reference.temporal or not text.words:
        return 0.0
    density = text.temporal / max(text.words, reference.words)
    return min(1.0, density / (reference.temporal / reference.words))


@dataclasses.dataclass
class PhysicsConfig:
    """Flags of the reward "physics"."""

    physics_detections: list[str] = field(help="detection caches, JSONL, written by tools/cache_detections.py")
    physics_weights: list[float] = field(
        [0.4, 0.25, 0.20, 0.15], help="weights of R_obj, R_temp, R_detail and R_hall (four numbers)"
    )
    physics_hallucination: str = field(
        "safety_critical",
        help="objects that R_hall looks at: the vocabulary's safety-critical ones (the paper), or all",
        choices=("safety_critical", "all"),
    )
    physics_vocabulary: str = field(str(DEFAULT), help="YAML file of driving words")
    spacy_model: str = field(DEFAULT_MODEL, help="spaCy pipeline: an installed name or its directory")
    physics_processes: int = field(
        1,
        help="processes that parse large batches of texts; more than 1 forks, which a process that uses a GPU must not",
    )


class PhysicsReward:
    """The reward as TRL calls it. `reward.score(...)` gives the Terms; `reward.last_terms` are those of the last call, one
    a completion, `dataclasses.asdict(term)` of which goes into a samples file.

    Attributes:
        parser, cache, weights: what the terms are made from.
        scored, unverified: completions scored, and those of them that claimed no object.
    """

    __name__ = "physics"

    def __init__(self, config: PhysicsConfig) -> None:
        if len(config.physics_weights) != len(TERMS):
            raise ValueError(f"--physics_weights takes {len(TERMS)} numbers ({', '.join(TERMS)}), got {len(config.physics_weights)}")  # fmt: skip
        self.weights = Weights(*config.physics_weights)
        self.cache = DetectionCache.load(config.physics_detections)
        self.parser = TextParser(config.spacy_model, config.physics_vocabulary, config.physics_processes)
        vocabulary = self.parser.vocabulary
        for entry in self.cache:
            vocabulary.check_labels(entry.classes, f"{', '.join(config.physics_detections)}: {entry.video!r}")
        self.critical = vocabulary.safety_critical
        if config.physics_hallucination == "all":
            self.critical = vocabulary.required | vocabulary.optional
        self.last_terms: list[Terms] = []
        self.scored = self.unverified = 0

    def score(self, texts: Sequence[str], references: Sequence[str], videos: Sequence[str]) -> list[Terms]:
        """Terms of N texts; each distinct text and reference is parsed once. Raises ValueError for a video that is not in
        the detection cache."""
        detected = [self.cache.classes(video) for video in videos]
        parsed = self.parser.parse([*texts, *references])
        rows = zip(parsed[: len(texts)], parsed[len(texts) :], detected, strict=True)
        return [terms(*row, self.parser.vocabulary, self.weights, self.critical) for row in rows]

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One reward a completion. `columns`: `video` (or `image`, where rows have pictures) and `reference`, one value a
        completion; `mode` splits the logged terms; `log_metric(name, value)` receives their means."""
        texts = [completion_text(completion) for completion in completions]
        # A file may hold rows of both kinds.
        videos = _column(columns, "video", "image")
        self.last_terms = self.score(texts, _column(columns, "reference"), videos)
        self.scored += len(texts)
        self.unverified += sum(item.unverified for item in self.last_terms)
        if columns.get("log_metric") and texts:
            self._log(columns["log_metric"], columns.get("mode"))
        return [item.reward for item in self.last_terms]

    def check(self, **columns: Any) -> list[str | None]:
        """For each row why it cannot be scored (no reference, or no detections of the frames that the run takes of these
        files), None where it can."""
        names = ("video", "image", "reference", "frames", "sample")
        given = zip(*(columns.get(name) or [None] * len(columns["id"]) for name in names), strict=True)
        return [
            self._problem(image if video is None else video, reference, frames, sample)
            for video, image, reference, frames, sample in given
        ]

    def _problem(self, video: Any, reference: Any, frames: Sequence[int] | None, sample: Sample | None) -> str | None:
        if not isinstance(video, str) or not video:
            return "the row needs a video or one image"
        if not isinstance(reference, str) or not reference:
            return "the row has no answer to be the reference: its last turn must be the assistant's"
        return self.cache.problem(video, frames, sample)

    def _log(self, log_metric: Callable[[str, float], None], modes: Sequence[str] | None) -> None:
        names = [*TERMS, "precision", "recall", "unverified", "words"]
        members = {"": self.last_terms}
        for mode, item in zip(modes or (), self.last_terms, strict=bool(modes)):
            if mode is not None:
                members.setdefault(f"{mode}/", []).append(item)
        for mode, items in members.items():
            for name in names:
                log_metric(f"physics/{mode}{name}", sum(float(getattr(item, name)) for item in items) / len(items))
        without = sum(bool(item.no_reference) for item in self.last_terms)
        log_metric("physics/no_reference", without / len(self.last_terms))


def _column(columns: dict[str, Any], *names: str) -> list[str]:
    """Of each completion the first of the columns that has something."""
    given = [columns[name] for name in names if columns.get(name) is not None]
    if not given:
        raise ValueError(f"the physics reward needs the column {' or '.join(map(repr, names))} in every row of --data")
    values: list[Any] = [next((value for value in row if value is not None), None) for row in zip(*given, strict=True)]
    empty = [number for number, value in enumerate(values) if not isinstance(value, str) or not value]
    if empty:
        raise ValueError(
            f"the physics reward needs a text in {' or '.join(map(repr, names))}, completion {empty[0]} has {values[empty[0]]!r}"
        )
    return values


def build(config: PhysicsConfig) -> PhysicsReward:
    """Raises ValueError for weights, a cache, a vocabulary or a spaCy model that cannot be used."""
    return PhysicsReward(config)
