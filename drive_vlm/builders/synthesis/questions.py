"""The step questions: self-instruct by task. A teacher writes questions with their answers, shown some of a pool of seed questions.

    general     what matters in the whole scene
    region      what a red rectangle marks, and what it means for the driver; the rectangle is drawn where the teacher sees pictures
    suggestion  what to do; the reasoning (objects, hazards, rule, action) stands apart from the answer
    vqa         one fact: existence, count, attribute, position, relation, rule (vqa.py)

How many of each a picture gets follows from --tasks and a hash of the picture, so that the shares hold over a file and no line
depends on another. A reply that is prose, breaks the form, refuses, was cut or contradicts the boxes is counted in "unread", by task
and reason; no row is made up in its place.
"""

import hashlib
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.rewrites import clean, fault
from drive_vlm.builders.synthesis.drawing import draw_box
from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.records import NamedObject
from drive_vlm.builders.synthesis.refine import name_of
from drive_vlm.builders.synthesis.scene import (
    best_caption,
    description_lines,
    known_descriptions,
    object_lines,
    objects_of,
    size_of,
)
from drive_vlm.builders.synthesis.step import Made
from drive_vlm.builders.synthesis.vqa import KINDS, ClassesIn, Fact, choose_fact
from drive_vlm.builders.synthesis.writers import Outcome, Said, Unread, Wanted, prompt_sha, read_json
from drive_vlm.judges.judge import Request
from drive_vlm.judges.verdicts import Turns, fill, read_prompt
from drive_vlm.store.cache import read_json as read_json_file

TASKS = ("general", "region", "suggestion", "vqa")
SHARES = {"general": 0.25, "region": 0.45, "suggestion": 0.15, "vqa": 0.15}
_PAIR = {"question": str, "answer": str}
FORMS: dict[str, Any] = {
    "general": {"rows": [_PAIR]},
    "region": _PAIR,
    "suggestion": {"question": str, "objects": [str], "hazards": [str], "rule": str, "action": str, "answer": str},
    "vqa": _PAIR,
}
PLACES = {
    "general": ["caption", "objects", "descriptions", "examples", "count"],
    "region": ["caption", "objects", "label", "place", "description", "examples"],
    "suggestion": ["caption", "objects", "descriptions", "examples"],
    "vqa": ["caption", "objects", "order", "examples"],
}
# Words of an answer, and words of a question.
_ANSWER_WORDS, _QUESTION_WORDS = (1, 300), (3, 60)
_COLORS = frozenset(["red", "green", "blue", "yellow", "orange", "white", "black", "gray", "grey", "silver", "brown", "purple", "pink", "beige", "amber"])  # fmt: skip
_MARK = re.compile(r"\b(rectangle|box|frame|outline)", re.IGNORECASE)
# The rectangle itself is red.
_RED_MARK = re.compile(r"\bred (rectangle|box|frame|outline)", re.IGNORECASE)


@dataclass(frozen=True)
class QuestionRules:
    """How many questions of which kind.

    Attributes:
        shares: of the tasks among the rows of a picture.
        rows: of a picture, on average.
        names: what an existence question may ask for in vain: things that the detector would have found.
        absent_share: of existence questions that ask for what is not there.
        examples: seed questions that a prompt shows.
        min_area: share of the picture that a region must have.
        classes_in: which classes of things a text names: "taxi" and "car" are one.
        show_picture: the teacher is sent the picture; else it may name no color that the caption does not have.
    """

    shares: Mapping[str, float]
    rows: float
    names: Sequence[str]
    absent_share: float
    examples: int
    min_area: float
    show_picture: bool
    seed: int
    classes_in: ClassesIn


def read_seeds(path: Path) -> dict[str, list[str]]:
    """The pool of seed questions: a JSON object of lists for general, region, suggestion and each kind of vqa. Raises ValueError."""
    pool = read_json_file(path)
    wanted = {*TASKS[:3], *KINDS}
    if not isinstance(pool, dict) or pool.keys() != wanted:
        raise ValueError(f"{path}: expected one JSON object with the lists {', '.join(sorted(wanted))}")
    for name, texts in pool.items():
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise ValueError(f"{path}: {name} must be a list of questions that is not empty")
    return pool


def luck_of(seed: int, image: str, what: str) -> random.Random:
    """Chance that belongs to a picture and a purpose alone."""
    return random.Random(hashlib.sha256(json.dumps([seed, image, what]).encode()).digest())


class Questions:
    """The TextStep questions. Raises ValueError for prompt files and seeds that cannot be used."""

    name = "questions"
    role = "teacher"
    fields = ("rows", "unread", "given_up")

    def __init__(self, prompts: Path, rules: QuestionRules) -> None:
        self.rules, self.pixels = rules, rules.show_picture
        self.prompts: dict[str, Turns] = {task: read_prompt(prompts / f"{task}.txt", PLACES[task]) for task in TASKS}
        self.seeds = read_seeds(prompts / "questions.json")
        self.shas = {task: self._sha(task) for task in TASKS}
        self.settings: dict[str, Any] = {
            "prompt_sha": self.shas,
            "tasks": dict(rules.shares),
            "rows": rules.rows,
            "names": sorted(rules.names),
            "absent_share": rules.absent_share,
            "examples": rules.examples,
            "min_area": rules.min_area,
            "show_picture": rules.show_picture,
        }
        # Where the teacher is shown rectangles: removed when the step goes.
        self._drawn = tempfile.TemporaryDirectory(prefix="regions_") if rules.show_picture else None

    def _sha(self, task: str) -> str:
        seeds = [self.seeds[kind] for kind in (KINDS if task == "vqa" else (task,))]
        return prompt_sha(self.prompts[task], seeds, FORMS[task])

    def numbers(self, image: str) -> dict[str, int]:
        """How many rows of each task the picture gets: rows x share, rounded up or down by chance so that the mean is exact."""
        numbers = {}
        for task in TASKS:
            whole, part = divmod(self.rules.rows * self.rules.shares[task], 1)
            numbers[task] = int(whole) + (luck_of(self.rules.seed, image, f"number {task}").random() < part)
        return numbers

    def wanted(self, picture: Picture) -> dict[str, Wanted]:
        """Nothing for a picture without a caption and without an object."""
        scene = _Scene(self, picture)
        if not scene.caption and not scene.objects:
            return {}
        found: dict[str, Wanted] = {}
        numbers = self.numbers(picture.image)
        if numbers["general"]:
            found["general"] = scene.general(numbers["general"])
        found |= {f"region {place}": scene.region(place) for place in scene.regions(numbers["region"])}
        found |= {f"suggestion {i}": scene.suggestion(i) for i in range(numbers["suggestion"])}
        for i in range(numbers["vqa"]):
            if fact := scene.fact(i):
                found[f"vqa {i}"] = scene.vqa(fact, i)
        return found

    def made(self, picture: Picture, found: dict[str, Outcome]) -> Made:
        """Rows in the order of tasks. What a picture cannot give (no object for a region) is counted like what could not be read."""
        rows = [row for outcome in found.values() for row in outcome.value or []]
        unread: Counter[str] = Counter()
        for name, outcome in found.items():
            unread.update(f"{name.split()[0]}: {reason.partition(':')[0]}" for reason in outcome.reasons)
        numbers = self.numbers(picture.image)
        if not found and any(numbers.values()):
            unread["no caption and no object"] = 1
        elif found:
            asked = Counter(name.split()[0] for name in found)
            for task in ("region", "vqa"):
                if numbers[task] > asked[task]:
                    unread[f"{task}: nothing to ask about"] = numbers[task] - asked[task]
            general = found.get("general")
            if general and general.value and len(general.value) < numbers["general"]:
                unread["general: fewer than asked"] = numbers["general"] - len(general.value)
        given_up = Counter(name.split()[0] for name, outcome in found.items() if outcome.value is None)
        if self._drawn is not None:
            for path in Path(self._drawn.name).glob(f"{_file_name(picture)}_*"):
                path.unlink()
        return Made({"rows": rows, "unread": dict(unread), "given_up": dict(given_up)}, dict(unread))

    def counts(self, line: dict[str, Any]) -> dict[str, int]:
        counts = Counter({"rows": len(line["rows"]), "given up": sum(line["given_up"].values())})
        for row in line["rows"]:
            counts[row["task"]] += 1
            if row["task"] == "vqa":
                counts[f"vqa {row['kind']}{' (absent)' if row.get('absent') else ''}"] += 1
        return dict(counts)

    def shown(self, line: dict[str, Any]) -> str:
        texts = [f"{len(line['rows'])} rows"]
        for row in line["rows"]:
            about = f" [{row['region']['label']}]" if "region" in row else ""
            texts.append(f"    {row['task']}/{row['kind']}{about}: {row['question']}\n        {row['answer']}")
        texts += [f"    unread: {count} {reason}" for reason, count in line["unread"].items()]
        return "\n".join(texts)

    def picture_with(self, picture: Picture, box: Sequence[float], place: int) -> str:
        """Path of the picture with the rectangle drawn, for the teacher."""
        assert self._drawn is not None
        path = Path(self._drawn.name) / f"{_file_name(picture)}_{place}.jpg"
        if not path.exists():
            # Without subsampling: at half the resolution of colors a thin red line fades.
            draw_box(picture.load(), box).save(path, quality=95, subsampling=0)
        return str(path)


def _file_name(picture: Picture) -> str:
    return hashlib.sha256(picture.image.encode()).hexdigest()[:16]


class _Scene:
    """What is known of one picture, and the requests about it."""

    def __init__(self, step: Questions, picture: Picture) -> None:
        self.step, self.picture, self.rules = step, picture, step.rules
        line, where = picture.line, picture.where
        self.caption = best_caption(line, where)
        self.objects = objects_of(line, where)
        self.size = size_of(picture, line)
        self.descriptions = known_descriptions(line, where)
        self.values = {
            "caption": self.caption or "(there is none)",
            "objects": object_lines(self.objects, *self.size),
            "descriptions": description_lines(line, where),
        }
        words = re.findall(r"[a-z]+", f"{self.caption} {self.values['objects']}".lower())
        self.colors = _COLORS & set(words)

    def general(self, number: int) -> Wanted:
        def read(said: Said) -> list[dict[str, Any]]:
            pairs = read_json(said, FORMS["general"])["rows"][:number]
            if not pairs:
                raise Unread("schema")
            return [self._row("general", "general", pair) for pair in pairs]

        return self._wanted("general", "general", "", {"count": str(number)}, read)

    def regions(self, number: int) -> list[int]:
        """Places in `objects` of so many objects that are large enough, chosen by chance, those of rare labels first."""
        area = self.rules.min_area * self.size[0] * self.size[1]
        fits = [i for i, found in enumerate(self.objects) if _area(found) >= area]
        labels = Counter(self.objects[i].label for i in fits)
        luck = luck_of(self.rules.seed, self.picture.image, "regions")
        order = sorted(fits, key=lambda i: (labels[self.objects[i].label], luck.random()))
        return sorted(order[:number])

    def region(self, place: int) -> Wanted:
        found = self.objects[place]
        width, height = self.size
        description = self.descriptions.get(found.label)
        values = {
            "label": found.label,
            "place": object_lines([found], width, height).removeprefix("1. "),
            "description": description.text if description else "none",
        }

        def read(said: Said) -> list[dict[str, Any]]:
            pair = read_json(said, FORMS["region"])
            row = self._row("region", "region", pair)
            if not _MARK.search(pair["question"]):
                raise Unread("no_rectangle")
            if not self._calls(pair["answer"], found.label):
                raise Unread("name_missing")
            return [row | {"region": {"box": found.box, "label": found.label}}]

        return self._wanted("region", "region", str(place), values, read, found.box, place)

    def suggestion(self, number: int) -> Wanted:
        def read(said: Said) -> list[dict[str, Any]]:
            reply = read_json(said, FORMS["suggestion"])
            reasoning = {name: reply[name] for name in ("objects", "hazards", "rule", "action")}
            self._check(json.dumps(reasoning, ensure_ascii=False))
            return [self._row("suggestion", "suggestion", reply) | {"reasoning": reasoning}]

        return self._wanted("suggestion", "suggestion", str(number), {}, read)

    def fact(self, number: int) -> Fact | None:
        luck = luck_of(self.rules.seed, self.picture.image, f"fact {number}")
        rules = self.rules
        return choose_fact(
            self.objects, self.caption, rules.names, self.size[0], rules.absent_share, luck, rules.classes_in
        )

    def vqa(self, fact: Fact, number: int) -> Wanted:
        def read(said: Said) -> list[dict[str, Any]]:
            pair = read_json(said, FORMS["vqa"])
            row = self._row("vqa", fact.kind, pair)
            if problem := fact.problem(pair["answer"]):
                raise Unread(problem)
            return [row if fact.absent is None else row | {"absent": fact.absent}]

        return self._wanted("vqa", fact.kind, str(number), {"order": fact.order}, read)

    def _wanted(
        self, task: str, kind: str, number: str, values: dict[str, str], read: Any, box: Any = None, place: int = 0
    ) -> Wanted:
        luck = luck_of(self.rules.seed, self.picture.image, f"seeds {task} {number}")
        seeds = self.step.seeds[kind]
        shown = luck.sample(seeds, min(self.rules.examples, len(seeds)))
        turns = fill(
            self.step.prompts[task], self.values | values | {"examples": "\n".join(f"- {text}" for text in shown)}
        )
        images: tuple[str, ...] = ()
        if self.rules.show_picture:
            path = self.picture.path if box is None else self.step.picture_with(self.picture, box, place)
            images = (path,)
        return Wanted(Request(turns, images), read, FORMS[task])

    def _row(self, task: str, kind: str, pair: Mapping[str, str]) -> dict[str, Any]:
        """Raises Unread for a question or an answer that cannot be used."""
        question, answer = clean(pair["question"]), clean(pair["answer"])
        for name, text, words in (("question", question, _QUESTION_WORDS), ("answer", answer, _ANSWER_WORDS)):
            if problem := fault(text, "stop", *words):
                raise Unread(f"{name}_{problem}" if problem != "refusal" else problem)
        self._check(f"{question} {answer}")
        return {"task": task, "kind": kind, "question": question, "answer": answer, "prompt_sha": self.step.shas[task]}

    def _calls(self, answer: str, label: str) -> bool:
        """Whether the answer calls the thing by its label's last word ("the traffic cone", "two cones"), or by a word of its class."""
        last = name_of(label).rpartition(" ")[2]
        if any(name_of(word) == last for word in re.findall(r"[\w'-]+", answer.lower())):
            return True
        return bool(set(self.rules.classes_in(answer)) & set(self.rules.classes_in(label)))

    def _check(self, text: str) -> None:
        """Raises Unread for a color that a teacher without the picture cannot know."""
        if self.rules.show_picture:
            return
        said = set(re.findall(r"[a-z]+", _RED_MARK.sub("", text).lower()))
        if new := (said & _COLORS) - self.colors:
            raise Unread(f"invented_color: {sorted(new)[0]}")


def _area(found: NamedObject) -> float:
    return (found.box[2] - found.box[0]) * (found.box[3] - found.box[1])
