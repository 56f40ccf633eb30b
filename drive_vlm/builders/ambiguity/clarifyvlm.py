"""ClarifyVLM's own pipeline (github.com/Ahn-Jeongmin/DL_Final_Project_ABL), its box annotations and its published rows.

1. The teacher sees the picture with the boxes of one class drawn and describes each thing, and their relation.
2. It sees the picture as it is with these descriptions and writes a question and four answers. Of several things: a question that
   fits all, one right answer, two wrong ones, a question back. Of one: a clear question, one right answer, three wrong ones.
Unlike there, replies are held to their form, one box has one description, a question back that leads to one thing is refused, and
a question that names what only some of the things have is refused; each with its reason in audit.json.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.builders.ambiguity.instances import Instance, Picture
from drive_vlm.builders.ambiguity.replies import Asker, form_problem
from drive_vlm.builders.ambiguity.sources import box_of, sized
from drive_vlm.builders.row_writer import Row
from drive_vlm.builders.splits import split_position
from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import load_image
from drive_vlm.judges.chat_client import ChatError, Message, image_part, in_threads
from drive_vlm.judges.verdicts import fill, read_prompt
from drive_vlm.store.keyed_lines import read_lines

PROMPTS = {
    name: f"clarifyvlm_{name}.txt" for name in ("objects", "object", "ambiguous", "clear")
}  # fmt: skip
_SKIP = "--on_bad_row skip leaves such rows out and counts them"
_THING = {"name": str, "attributes": {"color": str, "state": str, "shape": str}}
_OBJECTS = {"objects": [_THING], "relation": str}
_QA = {"question": str, "answers": dict.fromkeys(("1", "2", "3", "4"), str)}
_LEVELS = {"ambig": 1, "unambig": 0}


def read_annotations(file: Path, images: Path) -> Iterator[Picture | BadRow]:
    """`*_annotations.jsonl`: {"image_filename" or "image_path", "count_label", "boxes"}; the boxes of a line are of one class."""
    for line, row in _lines(file):
        where = f"{file}:{line}"
        image = row.get("image_filename") or row.get("image_path")
        found = [box_of(box) for box in row.get("boxes") or ()]
        boxes = [box for box in found if box is not None]
        if (
            not isinstance(image, str)
            or not isinstance(row.get("count_label"), str)
            or not boxes
            or len(boxes) < len(found)
        ):
            problem = 'a line needs "image_filename", "count_label" and "boxes" of four numbers each'
            yield BadRow("bad_object", where, problem, _SKIP)
            continue
        things = [Instance(row["count_label"], box, {}) for box in boxes]
        name = Path(image).with_suffix("").as_posix().replace("/", "_")
        yield sized(f"{name}-{line}", name, image, images, where, things)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    for line, row in read_lines(file, "not a row", "Fix or remove the line.", torn="the line is cut off"):
        if not isinstance(row, dict):
            raise ValueError(f"{file}:{line}: a row must be a JSON object, this is {type(row).__name__}")
        yield line, row


def read_published(file: Path, images: Path) -> Iterator[Row | BadRow]:
    """Published rows: {"image", "level", "question", "answer"} of the GRPO files, or `*_qa_description.jsonl` with `qa` in JSON."""
    for line, row in _lines(file):
        where = f"{file}:{line}"
        try:
            found = _published(row, where, file)
        except BadRow as error:
            yield error
            continue
        if not (images / found["image"]).is_file():
            way_out = "Is --image_root the right folder? --on_missing skip leaves such rows out and counts them"
            yield BadRow("image_missing", where, f"{images / found['image']} does not exist", way_out)
        else:
            yield found | {"id": f"{file.stem}-{line}"}


def _published(row: dict[str, Any], where: str, file: Path) -> Row:
    if "qa" in row:
        qa = _fenced(row["qa"])
        if not isinstance(qa, dict) or form_problem(qa, _QA):
            problem = '"qa" is not {"question", "answers": {"1" to "4"}}'
            raise BadRow("bad_object", where, problem, _SKIP)
        level = row.get("level") or ("unambig" if "unambig" in file.stem else "ambig")
        image, question, answers = row.get("image_filename") or row.get("image_path"), qa["question"], qa["answers"]
        answer = answers["4" if level == "ambig" else "1"]
        choices = [answers[key] for key in "1234"]
    else:
        image, level, question, answer = (row.get(key) for key in ("image", "level", "question", "answer"))
        choices = []
    if level not in _LEVELS or not all(isinstance(text, str) and text for text in (image, question, answer)):
        problem = f'a row needs "image", "question", "answer" and "level" ambig or unambig, got {json.dumps(row)[:100]}'
        raise BadRow("bad_object", where, problem, _SKIP)
    more = {"choices": choices, "gold_choice": choices.index(answer)} if choices else {}
    return _row("", str(image), str(image), str(question), str(answer), _LEVELS[level], "clarifyvlm_rows") | more


def _fenced(text: object) -> Any:
    """The JSON of a text, which may stand in a code fence; None where it is none."""
    try:
        return json.loads(re.sub(r"^```\w*\s*|\s*```$", "", text.strip())) if isinstance(text, str) else text
    except ValueError:
        return None


def _row(id: str, group: str, image: str, question: str, answer: str, ambiguous: int, source: str) -> Row:
    turns = [{"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}]
    return {
        "id": id, "group": group, "image": image, "messages": turns, "question": question, "ambiguous": ambiguous,
        "level": 2 * ambiguous, "type": "ambiguous" if ambiguous else "clear", "candidates": [], "target": None,
        "answer": "" if ambiguous else answer, "clarification": answer if ambiguous else "", "source": source,
    }  # fmt: skip


class Pipeline:
    """Both calls for the things of one class in one picture."""

    def __init__(self, asker: Asker, prompts: Path, images: Path, source: str, seed: int) -> None:
        self.asker, self.images, self.source, self.seed = asker, images, source, seed
        places = {"objects": ["count", "label"], "object": ["count", "label"]}
        self.prompts = {
            name: read_prompt(prompts / file, places.get(name, ["entities"])) for name, file in PROMPTS.items()
        }

    def row(self, asked: tuple[Picture, Sequence[Instance]]) -> Row | None:
        """The row of one picture and the things of a class; None where no reply was taken."""
        picture, things = asked
        entities = self._describe(picture, things)
        if entities is None:
            return None
        several = len(things) > 1
        described = entities["objects"] if several else [entities]
        prompt = fill(self.prompts["ambiguous" if several else "clear"], {"entities": json.dumps(entities)})
        messages = _with_picture(prompt, image_part(self.images / picture.image))
        qa = self.asker.ask(messages, _QA, lambda found: qa_problem(found, described), "question")
        if qa is None:
            return None
        options = [qa["answers"][key] for key in "1234"]
        answer = options[3] if several else options[0]
        id = f"{picture.id}-{re.sub(r'[^a-z0-9]+', '-', things[0].name.lower())}"
        order = sorted(range(4), key=lambda i: split_position(f"{id} {i}", self.seed))
        choices = [options[i] for i in order]
        row = _row(id, picture.group, picture.image, qa["question"], answer, int(several), self.source)
        row["level"] = 0 if not several else 2 if len(things) <= 3 else 3
        candidates = [
            {"box": list(thing.box), "category": thing.name, "attributes": entity["attributes"], "name": entity["name"]}
            for thing, entity in zip(things, described, strict=True)
        ]
        more = {"class": things[0].name, "candidates": candidates, "target": None if several else 0}
        return row | more | {"choices": choices, "gold_choice": choices.index(answer), "entity_description": entities}

    def _describe(self, picture: Picture, things: Sequence[Instance]) -> dict[str, Any] | None:
        several = len(things) > 1
        values = {"count": str(len(things)), "label": things[0].name}
        drawn = image_part(self.images / picture.image, draw_boxes(self.images / picture.image, things))
        messages = _with_picture(fill(self.prompts["objects" if several else "object"], values), drawn)

        def problem(found: dict[str, Any]) -> str:
            return "count" if several and len(found["objects"]) != len(things) else ""

        return self.asker.ask(messages, _OBJECTS if several else _THING, problem, "objects")


def qa_problem(found: dict[str, Any], things: Sequence[dict[str, Any]]) -> str:
    """Why a question with its four answers is not taken: form, same_answers, leading, narrowed, or ''."""
    question, answers = found["question"].strip(), [found["answers"][key].strip() for key in "1234"]
    if not question.endswith("?") or "<" in question or any("<" in answer for answer in answers):
        return "form"
    if len(set(answers)) < 4:
        return "same_answers"
    asks = [answer.endswith("?") for answer in answers]
    if asks != [False, False, False, len(things) > 1]:
        return "form"
    # "Do you mean the woman on the left?" names one of several.
    if len(things) > 1 and not re.search(r"\b(or|which)\b", answers[3].lower()):
        return "leading"
    return "narrowed" if len(things) > 1 and _narrowed(question, things) else ""


def _narrowed(question: str, things: Sequence[dict[str, Any]]) -> bool:
    """Whether the question has a word that only some of the things are described by."""
    said = set(re.findall(r"[a-z]+", question.lower()))
    words = [set(re.findall(r"[a-z]+", " ".join(thing["attributes"].values()).lower())) for thing in things]
    return bool(said & (set.union(*words) - set.intersection(*words)))


def draw_boxes(file: Path, things: Sequence[Instance]) -> bytes:
    """The picture as PNG with the boxes drawn and numbered from 1."""
    from PIL import ImageDraw

    image = load_image(str(file), str(file)).copy()
    draw = ImageDraw.Draw(image)
    for number, thing in enumerate(things, 1):
        draw.rectangle(thing.box, outline=(255, 0, 0), width=max(2, image.width // 300))
        draw.text((thing.box[0] + 4, thing.box[1] + 4), str(number), fill=(255, 0, 0))
    image.save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def _with_picture(turns: Sequence[tuple[str, str]], picture: Message) -> list[Message]:
    """The turns with the picture before the text of the last."""
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]
    messages[-1]["content"] = [picture, {"type": "text", "text": turns[-1][1]}]
    return messages


def write_questions(pipeline: Pipeline, pictures: Sequence[Picture], workers: int) -> list[Row]:
    """A row for the things of each class in each picture. Raises ValueError, with the way on, when the server cannot be asked."""
    asked = []
    for picture in pictures:
        classes: dict[str, list[Instance]] = defaultdict(list)
        for thing in picture.instances:
            classes[thing.name].append(thing)
        asked += [(picture, things) for things in classes.values()]
    try:
        found = in_threads(pipeline.row, dict(enumerate(asked)), workers, "asking")
        rows = {number: future.result() for number, future in found}
    except ChatError as error:
        way_on = f"The replies are in {pipeline.asker.cache}: the same command goes on from there"
        raise ValueError(f"{error}\n{way_on}") from error
    return [row for number in range(len(asked)) if (row := rows[number]) is not None]
