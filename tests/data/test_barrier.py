"""The barrier from a row to its tensors: any error of a row is a bad row with its place, what is wrong with the run is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.builders.checks import leak_keys
from drive_vlm.data.caches.feature_cache import FeatureCache
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import BadRow, parse_row
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import build_table
from drive_vlm.data.turns import RunError, one_row
from drive_vlm.generate.config import GenerateConfig
from drive_vlm.generate.rows import read_rows


@pytest.mark.parametrize(
    "error", [TypeError("a\nb"), RuntimeError("x" * 5000), RecursionError(), KeyError("k"), OSError(5, "I/O")]
)
def test_any_error_is_a_bad_row_in_one_line(error: Exception) -> None:
    with pytest.raises(BadRow) as caught, one_row("rows.jsonl:4"):
        raise error
    assert (caught.value.reason, caught.value.where) == ("unusable", "rows.jsonl:4")
    assert type(error).__name__ in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("error", [RunError("no package"), ImportError("av"), MemoryError(), KeyboardInterrupt()])
def test_what_is_wrong_with_the_run_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, one_row("rows.jsonl:4"):
        raise error
    assert caught.value is error and not isinstance(error, BadRow)


def test_one_text_that_the_tokenizer_refuses_costs_its_row_alone(
    encoder: Encoder, write_rows: Callable, good_row: dict, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(
        [
            good_row,
            good_row | {"conversations": [*good_row["conversations"][:1], {"from": "gpt", "value": "boom"}]},
            good_row,
        ]
    )
    lengths = encoder.lengths

    def refuse(texts: list[str], layouts: Any) -> list[int]:
        if any("boom" in text for text in texts):
            raise TypeError("TextEncodeInput must be Union[...]")
        return lengths(texts, layouts)

    monkeypatch.setattr(encoder, "lengths", refuse)
    table = build_table(open_sources([str(path)]), encoder, "skip")
    assert table.row.tolist() == [0, 2]
    assert [(row.where, row.reason) for row in table.bad] == [(f"{path}:2", "unusable")]
    with pytest.raises(BadRow, match=r"rows\.jsonl:2: TypeError: TextEncodeInput"):
        build_table(open_sources([str(path)]), encoder)


def test_a_template_that_complains_makes_a_bad_row(parts: Any) -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('Too long a talk') }}{% endif %}" + parts.template
    words = [{"role": role, "content": "a"} for role in ("user", "assistant")]
    chat = Encoder(parts.tokenizer, template, parts.vision)
    assert len(chat.encode(parse_row({"messages": words}, "f:1", "."))["input_ids"])
    with pytest.raises(BadRow, match="f:2: TemplateError: Too long a talk"):
        chat.encode(parse_row({"messages": words * 2}, "f:2", "."))


def test_an_entry_that_a_cache_lacks_is_no_bad_row(pictures: Path, parts: Any, tmp_path: Path) -> None:
    """Skipping it would train on whatever happens to be cached."""
    cache = FeatureCache.__new__(FeatureCache)
    cache.entries, cache.directory, cache.rebuild = {}, tmp_path, "REBUILD"
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision, features=cache)
    words = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(RunError, match="REBUILD"):
        encoder.layouts_of(parse_row({"image": "wide.png", "messages": words}, "f:1", str(pictures)))


def test_an_id_belongs_to_its_data_set(tmp_path: Path) -> None:
    """Two files may have the same ids, also under the same file name; within one, the second row is bad."""
    row = {"id": 1, "messages": [{"role": "user", "content": "Go?"}]}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "val.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'id': None})}\n")
    paths = [str(tmp_path / folder / "val.jsonl") for folder in ("a", "b")]
    samples, bad = read_rows(GenerateConfig(data=paths, out="x"))
    assert [sample.key for sample in samples] == [
        (f"{f}/val", i) for f, p in zip("ab", paths, strict=True) for i in ("1", f"{p}:2")
    ]
    with open(paths[1], "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(BadRow, match=r"b/val\.jsonl:3: id '1' came before at .*b/val\.jsonl:1"):
        read_rows(GenerateConfig(data=paths, out="x"))
    samples, bad = read_rows(GenerateConfig(data=paths, out="x", on_bad_row="skip"))
    assert len(samples) == 4 and [(row.reason, row.where) for row in bad] == [("duplicate_id", f"{paths[1]}:3")]


def test_leaks_are_looked_for_in_every_form(write_rows: Callable, pictures: Path) -> None:
    tell = {"role": "assistant", "content": "yes"}
    part = [{"type": "image", "image": "wide.png"}, {"type": "text", "text": "Go?"}]
    path = write_rows(
        [
            {"videos": ["clip"], "messages": [{"role": "user", "content": "Go?"}, tell]},
            {"messages": [{"role": "user", "content": part}, tell]},
            {"images": [{"path": "tall.jpg"}], "query": "Go?", "response": "yes"},
            {"id": "bad", "image": "absent.png"},
        ]
    )
    found = list(leak_keys(open_sources([str(path)])))
    assert [[Path(file).name for file in row["image"]] for row in found] == [["clip"], ["wide.png"], ["tall.jpg"], []]
    assert found[3]["id"] == "bad"
