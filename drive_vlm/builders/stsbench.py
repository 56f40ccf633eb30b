"""STSBench's questions about maneuvers over six frames as rows of multiple choice with several cameras.

Two published forms (LRP-IVC/STSBench, vqa_extractor/, 40937ba) are read, both JSON lists:

- Scenarios (vqa_extractor.hf): {"scenario", "negative_scenarios": "a,b,...", "sensors": {camera: [paths]}, "ego" | "agent",
  "other_agent"}. The question is made here: the right scenario and four of the negatives, drawn without replacement with weights that
  fall linearly from the first to the last, as the benchmark's extractors draw them (there without a seed), and shuffled.
- Questions (vqa_extractor.internvl, .qwen): {"prompt", "answer_letter", "answer_text", "man_id", "cams"}, taken as they stand. The
  prompt says its group: whether it asks about you or object 1, and with respect to object 2.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.drivelm import below_samples
from drive_vlm.builders.row_writer import Row, RowWriter
from drive_vlm.builders.stitching import LAYOUT, VIEW_SIZE
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.answers.choices import LETTERS
from drive_vlm.evaluation.stsbench import AGENT, AGENT_AGENT, BENCHMARK, EGO, EGO_AGENT
from drive_vlm.store.cache import read_json, write_json

NEGATIVES, FRAMES_PER_SECOND = 4, 2
SEEN, ALL = "seen", "all"
SKIP = "--on_bad_row skip leaves it out and counts it"
_IMAGE_TOKEN = "{IMAGE_TOKEN}"
_REFERRAL = re.compile(r"Frame-1 is captured with.*?(?=Options:)", re.DOTALL)
_OPTION = re.compile(r"^([A-J])\. (.+)$", re.MULTILINE)
_LOG = re.compile(r"(n\d{3}-[\d-]+[-+]\d{4})__")
_ASKED = {
    EGO: "What is the ego vehicle doing over these frames?",
    EGO_AGENT: "The agent is in the box {other} in frame 1. What is the ego vehicle doing with respect to the agent over these frames?",
    AGENT: "The agent is in the box {agent} in frame 1. What is the agent doing over these frames?",
    AGENT_AGENT: "The first agent is in the box {agent} in frame 1, the second in the box {other}. What is the first agent doing with "
    "respect to the second over these frames?",
}


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of a file. Raises ValueError for what is neither form."""
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        raise ValueError(f"{path}: expected a JSON list, as STSBench's vqa_extractor writes it")
    for index, item in enumerate(content):
        scenario = {"scenario", "negative_scenarios", "sensors"} <= item.keys()
        if not scenario and not {"prompt", "answer_letter", "answer_text", "man_id"} <= item.keys():
            raise ValueError(
                f"{path}[{index}]: neither a scenario (scenario, negative_scenarios, sensors) nor a question (prompt, answer_letter, "
                f"answer_text, man_id) of STSBench; it has {', '.join(item)}"
            )
    return content


def rows_of(items: Sequence[dict[str, Any]], source: str, root: Path, views: str, seed: int) -> Iterator[Row | BadRow]:
    """A row of each item, or why there is none. `views`: the cameras that see who is asked about, or all six of every frame."""
    for index, item in enumerate(items):
        where = f"{source}[{index}]"
        try:
            row = _question(item, where) if "prompt" in item else _scenario(item, index, views, seed)
        except BadRow as problem:
            yield problem
            continue
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            problem_text = f"not in the published form ({type(error).__name__}: {error})"
            yield BadRow("missing_field", where, problem_text, SKIP)
            continue
        if missing := next((path for path in row.get("image", []) if not (root / path).is_file()), None):
            problem_text = f"{root / missing} does not exist; is --image_root the folder that holds samples/?"
            yield BadRow("image_missing", where, problem_text, SKIP)
            continue
        yield row


def _scenario(item: dict[str, Any], index: int, views: str, seed: int) -> Row:
    agent, other = item.get("agent"), item.get("other_agent")
    group = (AGENT_AGENT if other else AGENT) if agent else (EGO_AGENT if other else EGO)
    right = item["scenario"].strip()
    wrong = [text.strip() for text in item["negative_scenarios"].split(",")]
    wrong = [text for text in dict.fromkeys(wrong) if text and text != right]
    if len(wrong) < NEGATIVES:
        problem = f"{len(wrong)} negative scenarios, and {NEGATIVES} are drawn"
        raise BadRow("few_options", f"scenario {index}", problem, SKIP)
    chosen = draw_options(right, wrong, np.random.default_rng([seed, index]))
    letter = LETTERS[chosen.index(right)]
    frames = len(item["sensors"]["CAM_FRONT"])
    cameras = [_cameras(group, agent, other, place) if views == SEEN else list(LAYOUT) for place in range(frames)]
    images = [below_samples(item["sensors"][camera][place]) for place, names in enumerate(cameras) for camera in names]
    shown = [
        f"Frame {place + 1}: " + " ".join(f"{camera} <image>" for camera in names)
        for place, names in enumerate(cameras)
    ]
    boxes = {name: _box(who) for name, who in (("agent", agent), ("other", other)) if who}
    options = dict(zip(LETTERS, chosen, strict=False))
    asked = "\n".join(
        [
            f"The frames are {FRAMES_PER_SECOND} a second. Boxes are [left, top, right, bottom] in thousandths of a picture.",
            _ASKED[group].format(**boxes),
            *(f"{name}. {words}" for name, words in options.items()),
            "Answer with the letter of the right option alone.",
        ]
    )
    text = "\n".join([*shown, asked])
    return _row(f"sts_{index}", group, right, options, letter, asked, text, images)


def draw_options(right: str, wrong: Sequence[str], generator: np.random.Generator) -> list[str]:
    """The right scenario and NEGATIVES of the wrong ones in a random order; the first of `wrong` is drawn len(wrong) times as often
    as the last."""
    weights = np.arange(len(wrong), 0, -1.0)
    drawn = generator.choice(len(wrong), size=NEGATIVES, replace=False, p=weights / weights.sum())
    chosen = [right, *(wrong[int(place)] for place in drawn)]
    return [chosen[int(place)] for place in generator.permutation(len(chosen))]


def _cameras(group: str, agent: Any, other: Any, place: int) -> list[str]:
    """The cameras of a frame that see who is asked about; the ego vehicle's is CAM_FRONT."""
    found = [agent["camera"]["cam"][place] if agent else "CAM_FRONT"]
    if other:
        found.append(other["camera"]["cam"][place])
    return list(dict.fromkeys(found))


def _box(who: dict[str, Any]) -> str:
    """The box of the first frame with its camera: pixels of 1600x900 as thousandths."""
    numbers = [round(value / VIEW_SIZE[i % 2] * 1000) for i, value in enumerate(who["camera"]["bb2d"][0])]
    if len(numbers) != 4:
        raise ValueError(f"a box of {len(numbers)} numbers")
    return f"{numbers} of {who['camera']['cam'][0]}"


def _question(item: dict[str, Any], where: str) -> Row:
    prompt, letter, images = (
        item["prompt"],
        item["answer_letter"],
        [below_samples(path) for path in item.get("cams", [])],
    )
    options = dict(_OPTION.findall(prompt[prompt.rindex("Options:") :] if "Options:" in prompt else ""))
    if options.get(letter, "").strip() != item["answer_text"].strip():
        problem = f"answer_letter {letter!r} is {options.get(letter)!r} among the prompt's options, answer_text is {item['answer_text']!r}"
        raise BadRow("bad_label", where, problem, SKIP)
    referral = _REFERRAL.search(prompt)
    if referral is None:
        problem = 'the prompt has no "Frame-1 is captured with ...", by which it tells its group'
        raise BadRow("missing_field", where, problem, "Build from the scenarios that vqa_extractor.hf writes")
    agent, other = ("object 1" in referral[0], "object 2" in referral[0])
    group = (AGENT_AGENT if other else AGENT) if agent else (EGO_AGENT if other else EGO)
    text = prompt.replace(_IMAGE_TOKEN, "<image>")
    if text.count("<image>") != len(images):
        problem = f"{text.count('<image>')} places of pictures in the prompt, and {len(images)} cams"
        raise BadRow("image_count", where, problem, SKIP)
    asked = text.replace("<image>", "").strip()
    return _row(f"man_{item['man_id']}", group, item["answer_text"].strip(), options, letter, asked, text, images)


def _row(
    name: str, group: str, scenario: str, options: dict[str, str], letter: str, asked: str, text: str, images: list[str]
) -> Row:
    log = next((found[1] for path in images if (found := _LOG.search(path))), name)
    row: Row = {
        "id": name,
        "group": log,
        "benchmark": BENCHMARK,
        "scenario_group": group,
        "scenario": scenario,
        "options": options,
        "asked": asked,
        "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": letter}],
    }
    return row | ({"image": images} if images else {})


def build(
    path: Path, root: Path, out: Path, name: str, views: str, seed: int, on_bad_row: str, on_missing: str
) -> dict[str, Any]:
    """Write NAME.jsonl and NAME.audit.json; gives {"rows", "groups", "scenarios", "letters", "bad_rows"}."""
    groups: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    kinds: set[tuple[str, str]] = set()
    seen: dict[str, str] = {}
    with RowWriter(out, on_bad_row) as writer:
        writer.add(f"{name}.jsonl", ())
        for place, row in enumerate(rows_of(read_items(path), str(path), root, views, seed)):
            where = f"{path}[{place}]"
            if not isinstance(row, BadRow) and row["id"] in seen:
                problem = f"id {row['id']!r} came before at {seen[row['id']]}"
                row = BadRow("duplicate_id", where, problem, SKIP)
            if isinstance(row, BadRow):
                writer.reject(row, on_missing == "skip" and row.reason == "image_missing")
                continue
            seen[row["id"]] = where
            groups[row["scenario_group"]] += 1
            letters[row["conversations"][1]["value"]] += 1
            kinds.add((row["scenario_group"], row["scenario"]))
            writer.add(f"{name}.jsonl", [row])
    result = {
        "rows": sum(groups.values()),
        "groups": dict(groups),
        "scenarios": len(kinds),
        "letters": dict(sorted(letters.items())),
        "bad_rows": writer.audit()["bad_rows"],
    }
    write_json(out / f"{name}.audit.json", result)
    return result
