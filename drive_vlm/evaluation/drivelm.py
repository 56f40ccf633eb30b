"""DriveLM's challenge score, written from the definitions of OpenDriveLab/DriveLM `challenge/evaluation.py`
(commit 046920057779d7356b05aaf4ea8328b071978724) and `extract_data.py`.

    final = 0.4 GPT/100 + 0.2 language + 0.2 match/100 + 0.2 accuracy
    language = mean(BLEU-1..4)/3 + ROUGE_L/3 + CIDEr/10/3        match = (100 F1 + GPT of the same answers)/2

A question's tags say which parts it enters: 0 accuracy, 1 GPT, 2 language, 3 match. Known oddities, kept because the
published numbers have them:

- The graph gate: a frame's first answer is matched with its target; a later question counts only if every point
  it names is among the target's points matched there. A model that finds fewer objects answers fewer questions, so
  denominators differ between models: compare `counted` too.
- A point is two consecutive texts `\\d+\\.\\d+`, whatever stands around them: integer coordinates do not exist (they
  are counted in `ignored_coordinates`), signs are lost, "3.5 m" shifts the pairs behind it, cameras are not compared.
- A prediction takes the nearest free point of the target in the order of writing (greedy, L1 < 16 px).
- Accuracy compares exact texts: "B." is not "B".
- CIDEr's idf comes from the language answers of the very set, and grows with it; it can exceed 1 after the division.

Where the official script raises, this one goes on and counts: an answer that is missing is an empty one (`missing`),
an odd last decimal is dropped (`odd_decimals`; officially so in predictions only), a part without a question is None.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from drive_vlm.evaluation.answer_accuracy import normalize_answer
from drive_vlm.evaluation.drivebench import CLEAN, MCQ, Item, add_baselines
from drive_vlm.evaluation.score_table import ScoreTable
from drive_vlm.evaluation.text_overlap import language_scores

VERSION = "OpenDriveLab/DriveLM@0469200"
CATEGORIES = ("perception", "prediction", "planning", "behavior")
ACCURACY, GPT, LANGUAGE, MATCH = 0, 1, 2, 3
_NAMES = {ACCURACY: "accuracy", GPT: "GPT", LANGUAGE: "language", MATCH: "match"}
WEIGHTS = {"gpt": 0.4, "language": 0.2, "match": 0.2, "accuracy": 0.2}
MATCH_DISTANCE = 16.0
GPT_LEFT_OUT = "GPT part left out"
JUDGE_PROMPT = (
    "A driving assistant was asked about a traffic scene. Compare its answer with the reference answer and grade it "
    "from 0 to 100: 100 means the same content, 0 means nothing in common. Do not round to tens; 62 or 78 are fine "
    "grades. Reply with the number alone.\n\nReference answer: {reference}\n\nAnswer of the assistant: {answer}"
)

Point = tuple[float, float]
Pair = tuple[str, str]
# Ratings 0-100 of (answer, target) pairs; None where the judge's reply held no rating.
Judge = Callable[[Sequence[Pair]], Sequence[float | None]]

_DECIMAL = re.compile(r"\d+\.\d+")
_TAG = re.compile(r"<c\d+\s*,\s*CAM_[A-Z_]+\s*,([^<>]*)>")


@dataclass(frozen=True)
class Question:
    """One question of the test file. `id` is the official scene_frame_i, i counting through the four categories; `alias` is
    scene_frame_category_index, the id of the rows that tools/build_drivelm.py writes."""

    id: str
    alias: str
    frame: str
    category: str
    question: str
    target: str
    tags: tuple[int, ...]
    scene: str = ""


@dataclass(frozen=True)
class DriveLMScore:
    """Every part with its denominator. Parts: accuracy, language 0-1 (CIDEr may lift it above 1); gpt, match, match_f1
    and match_gpt 0-100; None where nothing was rated. `final` is None unless all four parts are there; then
    `covered_score` is the weighted sum of what is there and `covered_weight` the weights it covers."""

    final: float | None
    covered_score: float
    covered_weight: float
    note: str
    accuracy: float | None
    gpt: float | None
    language: float | None
    match: float | None
    match_f1: float | None
    match_gpt: float | None
    language_parts: dict[str, float] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    questions: int = 0
    counted: int = 0
    gated: int = 0
    missing: int = 0
    odd_decimals: int = 0
    ignored_coordinates: int = 0
    unrated: int = 0


def read_questions(test: Mapping[str, Any], source: str = "the test file") -> list[Question]:
    """The questions of a test_eval JSON `{scene: {"key_frames": {frame: {"QA": {category: [{Q, A, tag}]}}}}}` in order.

    An absent category counts as empty. Raises ValueError, naming scene and frame, for a question without Q, A or tag.
    """
    questions: list[Question] = []
    for scene, content in test.items():
        frames = content.get("key_frames") if isinstance(content, dict) else None
        if not isinstance(frames, dict):
            raise ValueError(f'{source}: scene {scene}: no "key_frames"; expected the challenge\'s test_eval.json')
        for frame, data in frames.items():
            questions.extend(_frame_questions(scene, f"{scene}_{frame}", data.get("QA", {}), source))
    if not questions:
        raise ValueError(f"{source}: no questions")
    return questions


def _frame_questions(scene: str, frame: str, answers: Mapping[str, Any], source: str) -> Iterator[Question]:
    number = 0
    for category in CATEGORIES:
        for index, qa in enumerate(answers.get(category, [])):
            name = f"{source}: {frame} {category} {index}"
            if not isinstance(qa.get("Q"), str) or not isinstance(qa.get("A"), str):
                raise ValueError(f'{name}: "Q" and "A" must be texts')
            if not isinstance(qa.get("tag"), list):
                raise ValueError(f'{name}: no "tag" list; only test files have it (DriveLM extract_data.py makes them)')
            alias = f"{frame}_{category}_{index}"
            yield Question(f"{frame}_{number}", alias, frame, category, qa["Q"], qa["A"], tuple(qa["tag"]), scene)
            number += 1


def points(text: str) -> list[Point]:
    """The points of a text by the official rule: its decimal numbers in pairs; an odd last one is dropped."""
    numbers = [float(number) for number in _DECIMAL.findall(text)]
    return list(zip(numbers[0::2], numbers[1::2], strict=False))


def match_points(answer: str, target: str) -> tuple[list[Point], float]:
    """(matched points of the target, F1 in 0-1) of greedy matching by L1 distance < 16 px."""
    predicted, free = points(answer), points(target)
    wanted, matched = len(free), []
    for x, y in predicted:
        distances = [abs(x - u) + abs(y - v) for u, v in free]
        if distances and min(distances) < MATCH_DISTANCE:
            matched.append(free.pop(distances.index(min(distances))))
    # The official script adds 1e-8 to every denominator; without it a perfect F1 would differ in the 9th digit.
    precision = len(matched) / (len(predicted) + 1e-8)
    recall = len(matched) / (wanted + 1e-8)
    return matched, 2 * precision * recall / (precision + recall + 1e-8)


def gate(questions: Sequence[Question], answers: Mapping[str, str]) -> list[Question]:
    """The questions that count: the first of each frame, and those whose points its answer has matched."""
    counted: list[Question] = []
    frame, graph = None, set[Point]()
    for question in questions:
        if question.frame != frame:
            frame = question.frame
            graph = set(match_points(answers.get(question.id, ""), question.target)[0])
            counted.append(question)
        elif graph.issuperset(points(question.question)):
            counted.append(question)
    return counted


def score(questions: Sequence[Question], answers: Mapping[str, str], judge: Judge | None = None) -> DriveLMScore:
    """The DriveLM score of `answers` (official id -> text, coordinates in pixels of the 1600x900 views).

    Without a judge the GPT part is left out and `final` is None. Raises ValueError when no answer has a known id.
    """
    if not any(question.id in answers for question in questions):
        raise ValueError(
            "no prediction has an id of the test file; ids are scene_frame_number as in its official order"
        )
    counted = gate(questions, answers)
    pairs = _pairs(counted, answers)
    ratings: list[float | None] = list(judge(pairs[GPT] + pairs[MATCH])) if judge else []
    gpt, match_gpt = _mean(ratings[: len(pairs[GPT])]), _mean(ratings[len(pairs[GPT]) :])
    accuracy = _mean([float(answer == target) for answer, target in pairs[ACCURACY]])
    match_f1 = _mean([100 * match_points(*pair)[1] for pair in pairs[MATCH]])
    language_parts = language_scores(*zip(*pairs[LANGUAGE], strict=True)) if pairs[LANGUAGE] else {}
    language = combine_language(language_parts) if language_parts else None
    match = None if match_f1 is None or match_gpt is None else (match_f1 + match_gpt) / 2
    # Match is half F1, half rating: without a judge its first half is still known.
    terms = [
        (WEIGHTS["gpt"], gpt, 100),
        (WEIGHTS["language"], language, 1),
        (WEIGHTS["match"] / 2, match_f1, 100),
        (WEIGHTS["match"] / 2, match_gpt, 100),
        (WEIGHTS["accuracy"], accuracy, 1),
    ]
    known = [(weight, value / scale) for weight, value, scale in terms if value is not None]
    covered_score, complete = sum(weight * value for weight, value in known), len(known) == len(terms)
    texts = [answers[q.id] for q in questions if q.id in answers]
    return DriveLMScore(
        final=covered_score if complete else None,
        covered_score=covered_score,
        covered_weight=sum(weight for weight, _ in known),
        note="" if complete else _note(judge is not None, pairs),
        accuracy=accuracy,
        gpt=gpt,
        language=language,
        match=match,
        match_f1=match_f1,
        match_gpt=match_gpt,
        language_parts=language_parts,
        n={name.lower(): len(pairs[tag]) for tag, name in _NAMES.items()},
        questions=len(questions),
        counted=len(counted),
        gated=len(questions) - len(counted),
        missing=sum(q.id not in answers for q in questions),
        odd_decimals=sum(len(_DECIMAL.findall(text)) % 2 for text in texts),
        ignored_coordinates=sum(ignored_coordinates(text) for text in texts),
        unrated=sum(rating is None for rating in ratings),
    )


def _pairs(counted: Sequence[Question], answers: Mapping[str, str]) -> dict[int, list[Pair]]:
    """(answer, target) of the counted questions of each tag; an answer that is missing is an empty one."""
    return {tag: [(answers.get(q.id, ""), q.target) for q in counted if tag in q.tags] for tag in _NAMES}


def accuracy_table(
    questions: Sequence[Question], answers: Mapping[str, str], seed: int = 0, blind: Mapping[str, str] | None = None
) -> ScoreTable | None:
    """The accuracy part by the official rule and by lenient reading side by side, with intervals by scene, and what a majority, chance
    and `blind` answers (official id -> text) get; None where no question counts for it. It is no part of the official score.

    Lenient: the same choice of the question's options, else the same yes or no, else the same words after `normalize_answer`.
    """
    asked = [question for question in gate(questions, answers) if ACCURACY in question.tags]
    if not asked:
        return None
    items = [
        Item(q.id, q.scene, CLEAN, q.category, MCQ, "", q.question, q.target, answers.get(q.id, "")) for q in asked
    ]
    table = ScoreTable("DriveLM accuracy", VERSION, len(items), sum(q.id in answers for q in asked), seed=seed)
    groups = [item.group for item in items]
    lenient = [item.lenient if item.gold.read else _same_words(item) for item in items]
    table.unread = sum(item.gold.read and not item.said.read for item in items)
    table.add("strict", [float(item.strict) for item in items], groups)
    table.add("lenient", [float(right) for right in lenient], groups, unread=table.unread)
    table.differ = sum(item.strict != right for item, right in zip(items, lenient, strict=True))
    add_baselines(table, items, items, blind)
    return table


def _same_words(item: Item) -> bool:
    return normalize_answer(item.prediction) == normalize_answer(item.reference)


def over_seeds(
    questions: Sequence[Question], answers: Mapping[str, str], score: DriveLMScore, judges: Sequence[Judge]
) -> dict[str, Any]:
    """What further `judges`, the same one with other seeds, make of the rated parts: {gpt, match_gpt, final: {"values": one a seed, that
    of `score` first, "mean", "sd": sample standard deviation}}. None where a seed rated nothing."""
    pairs = _pairs(gate(questions, answers), answers)
    found: dict[str, list[float | None]] = {"gpt": [score.gpt], "match_gpt": [score.match_gpt], "final": [score.final]}
    for judge in judges:
        ratings = list(judge(pairs[GPT] + pairs[MATCH]))
        gpt, match_gpt = _mean(ratings[: len(pairs[GPT])]), _mean(ratings[len(pairs[GPT]) :])
        final = None
        if score.final is not None and None not in (gpt, match_gpt, score.gpt, score.match_gpt):
            assert gpt is not None and match_gpt is not None and score.gpt is not None and score.match_gpt is not None
            moved = WEIGHTS["gpt"] * (gpt - score.gpt) + WEIGHTS["match"] / 2 * (match_gpt - score.match_gpt)
            final = score.final + moved / 100
        for name, value in (("gpt", gpt), ("match_gpt", match_gpt), ("final", final)):
            found[name].append(value)
    return {name: _spread(values) for name, values in found.items()}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "values": list(values),
        "mean": mean(known) if known else None,
        "sd": stdev(known) if len(known) > 1 else None,
    }


def combine_language(parts: Mapping[str, float]) -> float:
    """mean(BLEU-1..4)/3 + ROUGE_L/3 + CIDEr/10/3."""
    bleu = sum(parts[f"Bleu_{n}"] for n in range(1, 5)) / 4
    return (bleu + parts["ROUGE_L"] + parts["CIDEr"] / 10) / 3


def ignored_coordinates(text: str) -> int:
    """How many numbers inside object tags the official rule does not see, since they have no decimals."""
    numbers = [re.findall(r"\d+(?:\.\d+)?", inside) for inside in _TAG.findall(text)]
    return sum("." not in number for inside in numbers for number in inside)


def parse_rating(reply: str) -> float | None:
    """The one number 0-100 of a judge's reply ("78", "Score: 78/100"), its thinking left aside; None otherwise."""
    words = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL)
    found = re.fullmatch(r"[^\d-]*(\d+(?:\.\d+)?)(?:\s*/\s*100)?[^\d]*", words)
    return float(found[1]) if found and float(found[1]) <= 100 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _note(judged: bool, pairs: Mapping[int, Sequence[Pair]]) -> str:
    empty = [_NAMES[tag] for tag, found in pairs.items() if not found]
    notes = [] if judged else [GPT_LEFT_OUT]
    notes += [f"no question counted for: {', '.join(empty)}"] if empty else []
    return "; ".join(notes) or "the judge rated nothing"
