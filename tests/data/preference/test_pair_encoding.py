"""Preference pairs on their way to the model: what counts as one, what is labelled, and what a batch holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drive_vlm.data.collate import Collator
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.preference.pair_encoding import EncodedPairs, PairCollator, PairEncoder, answers_of
from drive_vlm.data.samples import BadRow, parse_row
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import build_table

QUESTION = {"from": "human", "value": "<image>\nWhat is ahead?"}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "image": "square.png",
        "conversations": [QUESTION],
        "chosen": "a car",
        "rejected": "a wide road",
    } | changes


@pytest.fixture
def pair_encoder(parts: Any) -> PairEncoder:
    return PairEncoder(parts.tokenizer, parts.template, parts.vision)


def sample(pictures: Path, **changes: Any) -> Any:
    return parse_row(row(**changes), "x:1", str(pictures), need_answer=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rejected": " a car "}, "identical"),
        ({"rejected": ""}, "empty_answer"),
        ({"chosen": None}, "missing_field"),
        ({"rejected": [{"role": "user", "content": "a"}]}, "missing_field"),
        ({"rejected": "an <image>"}, "image_count"),
    ],
)
def test_what_is_no_pair(changes: dict[str, Any], reason: str, pictures: Path) -> None:
    with pytest.raises(BadRow) as error:
        answers_of(sample(pictures, **changes))
    assert error.value.reason == reason and "x:1" in str(error.value)


def test_an_answer_that_ends_the_conversation_is_the_chosen_one(pictures: Path) -> None:
    turns = [QUESTION, {"from": "gpt", "value": "a truck"}]
    plain = row(conversations=turns)
    del plain["chosen"]
    assert answers_of(parse_row(plain, "x:1", str(pictures), False)) == ("a truck", "a wide road")
    assert answers_of(sample(pictures, conversations=turns)) == ("a car", "a wide road")  # regenerated


def test_each_side_is_encoded_as_a_row_with_that_answer(pictures: Path, parts: Any, pair_encoder: PairEncoder) -> None:
    earlier = [QUESTION, {"from": "gpt", "value": "nothing"}, {"from": "human", "value": "Sure?"}]
    features = pair_encoder.encode(sample(pictures, conversations=earlier))
    plain = Encoder(parts.tokenizer, parts.template, parts.vision)
    for side, answer in zip(features["sides"], ("a car", "a wide road"), strict=True):
        turns = [*earlier, {"from": "gpt", "value": answer}]
        alone = plain.encode(
            parse_row({"id": "1", "image": "square.png", "conversations": turns}, "x:1", str(pictures), True)
        )
        assert side["input_ids"].tolist() == alone["input_ids"].tolist()
        # the earlier answer belongs to the prompt
        assert parts.tokenizer.decode(side["labels"][side["labels"] >= 0]) == f"{answer}<|im_end|>"
    assert features["sides"][0]["vision"] is features["sides"][1]["vision"]


def table_of(tmp_path: Path, rows: list[dict[str, Any]], encoder: Any, **options: Any) -> Any:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return build_table(open_sources([str(path)]), encoder, need_answer=False, **options)


def test_the_length_of_a_pair_is_that_of_its_longer_side(pictures: Path, pair_encoder: PairEncoder) -> None:
    """`pictures` is tmp_path. A pair with a side above the limit is bad, whichever side it is."""
    rows = [row(), row(chosen="a wide road", rejected="a car"), row(chosen="x " * 50)]
    table = table_of(pictures, rows, pair_encoder)
    lengths = [
        max(len(side["input_ids"]) for side in pair_encoder.encode(table.sample(i, False))["sides"]) for i in range(3)
    ]
    assert table.length.tolist() == lengths and lengths[0] == lengths[1] < lengths[2]
    with pytest.raises(BadRow, match=r"pairs\.jsonl:3: the row has \d+ tokens, more than --max_length") as error:
        table_of(pictures, rows, pair_encoder, max_length=lengths[0])
    assert error.value.reason == "too_long"
    cut = table_of(pictures, rows, pair_encoder, max_length=lengths[0], on_bad_row="skip")
    assert len(cut) == 2 and [bad.reason for bad in cut.bad] == ["too_long"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_alternates_chosen_and_rejected(
    packed: bool, pictures: Path, parts: Any, pair_encoder: PairEncoder
) -> None:
    plain = row(id="2", chosen="no", rejected="yes, a red car")
    del plain["image"]
    plain["conversations"] = [{"from": "human", "value": "Is it green?"}]
    dataset = EncodedPairs(table_of(pictures, [row(), plain], pair_encoder), pair_encoder)
    dataset.reference = np.array([[-1.0, -2.0], [-3.0, -4.0]])
    collate = PairCollator(Collator(parts.tokenizer.pad_token_id, parts.vision, packed))
    sequences = [dataset[(0, 1)]] if packed else [dataset[(0,)], dataset[(1,)]]
    batch = collate([*sequences, [BadRow("image_corrupt", "x:9", "broken", "Mend it")]])
    assert batch["input_ids"].shape[0] == (1 if packed else 4)
    spoken = parts.tokenizer.decode(batch["labels"][batch["labels"] >= 0])
    assert spoken == "a car<|im_end|>a wide road<|im_end|>no<|im_end|>yes, a red car<|im_end|>"
    counts = [len(parts.tokenizer(text)["input_ids"]) + 1 for text in ("a car", "a wide road", "no", "yes, a red car")]
    assert batch["answer_tokens"].tolist() == counts and batch["reference"].tolist() == [[-1, -2], [-3, -4]]
    assert batch["sample_ids"] == ["1", "2"] and [bad.where for bad in batch["bad_rows"]] == ["x:9"]
    assert batch["pixel_values"].shape[0] == 2  # the one picture, for each side
    assert batch["num_tokens"] == sum(len(s["input_ids"]) for i in (0, 1) for s in dataset[(i,)][0]["sides"])


def test_a_pair_without_its_reference_is_a_bad_row(pictures: Path, pair_encoder: PairEncoder) -> None:
    dataset = EncodedPairs(table_of(pictures, [row()], pair_encoder), pair_encoder)
    dataset.reference = np.array([[np.nan, np.nan]])
    (bad,) = dataset[(0,)]
    assert isinstance(bad, BadRow) and bad.reason == "no_reference" and bad.where.endswith(":1")


def test_a_batch_without_a_pair(parts: Any) -> None:
    batch = PairCollator(Collator(parts.tokenizer.pad_token_id, parts.vision))([])
    assert batch["input_ids"].shape == (1, 1) and batch["answer_tokens"].shape == (0,) and "reference" not in batch


def test_pairs_and_rows_do_not_share_measured_lengths(parts: Any, pair_encoder: PairEncoder) -> None:
    assert Encoder(parts.tokenizer, parts.template, parts.vision).fingerprint() != pair_encoder.fingerprint()
