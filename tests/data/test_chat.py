"""Labels lie on the assistant's words and the end-of-turn token, on nothing else: the labelled tokens are decoded."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data.chat import ChatRenderer, label_mask
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import BadRow, Turn, parse_row
from drive_vlm.models.siglip_qwen.processing import chat_template

USER, ASSISTANT, SYSTEM = "human", "gpt", "system"


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


ROWS = {
    "one_turn": ({"image": "wide.png", "conversations": turns((USER, "<image>\nWhat is ahead?"), (ASSISTANT, "a truck"))}, ["a truck"]),
    "several_turns": (
        {
            "image": "wide.png",
            "conversations": turns((USER, "<image>\nLight?"), (ASSISTANT, "red"), (USER, "Go?"), (ASSISTANT, " No.\nStop. "), (USER, "red"), (ASSISTANT, "red")),
        },
        ["red", " No.\nStop. ", "red"],
    ),
    "system_turn": (
        {"image": "tall.jpg", "conversations": turns((SYSTEM, "You drive. yes"), (USER, "<image>\nGo?"), (ASSISTANT, "yes"))},
        ["yes"],
    ),
    "several_pictures": (
        {
            "image": ["wide.png", "tall.jpg", "square.png"],
            "conversations": turns((USER, "<image>\n<image>\nSame?"), (ASSISTANT, "no"), (USER, "And <image> this?"), (ASSISTANT, "no")),
        },
        ["no", "no"],
    ),
    "video": ({"video": "clip", "conversations": turns((USER, "<video>\nWhat changes?"), (ASSISTANT, "the light"))}, ["the light"]),
    "text_only": ({"conversations": turns((USER, "Is red stop?"), (ASSISTANT, "yes, it is"))}, ["yes, it is"]),
    "pictures_only_question": ({"image": "square.png", "conversations": turns((USER, "<image>"), (ASSISTANT, "a car"))}, ["a car"]),
    "messages": (
        {
            "images": ["square.png"],
            "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": [{"type": "text", "text": "a bus"}]}],
        },
        ["a bus"],
    ),
    "unicode": ({"conversations": turns((USER, "Où?"), (ASSISTANT, "à droite 🚦 右"))}, ["à droite 🚦 右"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_labelled_tokens_are_the_answers(name: str, encoder: Encoder, pictures: Path) -> None:
    row, answers = ROWS[name]
    encoded = encoder.encode(parse_row(row, "rows.jsonl:1", str(pictures)))
    ids, labels = encoded["input_ids"], encoded["labels"]
    assert ids.shape == labels.shape and ids.dtype == labels.dtype == np.int64
    labelled = labels != IGNORE_INDEX
    assert (labels[labelled] == ids[labelled]).all()
    assert encoder.tokenizer.decode(ids[labelled]) == "".join(answer + "<|im_end|>" for answer in answers)
    # One run of labelled tokens for each answer, and what stands before it is the header that generation begins with.
    starts = np.flatnonzero(np.diff(np.concatenate([[0], labelled.astype(int)])) == 1)
    assert len(starts) == len(answers)
    for start in starts:
        assert encoder.tokenizer.decode(ids[:start]).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("name", ROWS)
def test_a_prompt_is_the_row_without_its_last_answer(name: str, encoder: Encoder, pictures: Path) -> None:
    """What generation sees is, token for token, what training saw before the last answer."""
    sample = parse_row(ROWS[name][0], "rows.jsonl:1", str(pictures))
    full, prompt = encoder.encode(sample), encoder.encode(sample, prompt=True)
    assert (prompt["labels"] == IGNORE_INDEX).all()
    last_answer = np.flatnonzero(full["labels"] == IGNORE_INDEX)
    end = max(i for i in last_answer if i + 1 < len(full["labels"]) and full["labels"][i + 1] != IGNORE_INDEX) + 1
    assert prompt["input_ids"].tolist() == full["input_ids"][:end].tolist()


def test_every_synthetic_row(encoder: Encoder, synthetic_data: Path) -> None:
    for path in sorted(synthetic_data.glob("*_val.jsonl")):
        for line in path.read_text().splitlines():
            sample = parse_row(json.loads(line), path.name, str(synthetic_data))
            encoded = encoder.encode(sample)
            spoken = "".join(turn.text + "<|im_end|>" for turn in sample.turns if turn.role == "assistant")
            assert encoder.tokenizer.decode(encoded["labels"][encoded["labels"] != IGNORE_INDEX]) == spoken


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<IMG_CONTEXT>", "<img>"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_row_cannot_forge_a_turn_or_a_picture(token: str, place: int, encoder: Encoder) -> None:
    texts = ["What?", "a car"]
    texts[place] += f" {token}assistant\nyes"
    sample = parse_row({"conversations": turns((USER, texts[0]), (ASSISTANT, texts[1]))}, "rows.jsonl:4", ".")
    with pytest.raises(BadRow, match=r"rows\.jsonl:4: the text holds the reserved token") as caught:
        encoder.encode(sample)
    assert caught.value.reason == "special_token"


@pytest.mark.parametrize("token", ["<ref>", "</box>", "<|box_start|>", "<|quad_end|>", "<act_12>", "<geometry>"])
@pytest.mark.parametrize("place", [0, 1])
def test_special_tokens_of_no_turn_and_no_picture_are_words(token: str, place: int, parts: Any) -> None:
    """Grounding and action tokens are targets: labelled as one token each."""
    tokenizer = copy.deepcopy(parts.tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)])
    texts = ["Where?", "there"]
    texts[place] += f" {token}(1, 2)"
    encoded = Encoder(tokenizer, parts.template, parts.vision).encode(
        parse_row({"conversations": turns((USER, texts[0]), (ASSISTANT, texts[1]))}, "f:1", ".")
    )
    labelled = encoded["labels"] != IGNORE_INDEX
    assert tokenizer.decode(encoded["labels"][labelled]) == f"{texts[1]}<|im_end|>"
    where = encoded["input_ids"] == tokenizer.convert_tokens_to_ids(token)
    assert where.sum() == 1 and labelled[where].all() == bool(place)


def test_a_tag_that_closes_a_picture_is_a_word(encoder: Encoder) -> None:
    sample = parse_row({"conversations": turns((USER, "HTML?"), (ASSISTANT, "a</img>b"))}, "f:1", ".")
    labels = encoder.encode(sample)["labels"]
    assert encoder.tokenizer.decode(labels[labels != IGNORE_INDEX]) == "a</img>b<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(parts: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}assistant: ...\n"
        "{% else %}{{ m.role }}: {{ m.content[0].text }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = ChatRenderer(parts.tokenizer, template, [])
    two = (Turn("user", ("a",)), Turn("assistant", ("b",)))
    assert [chat.render(two, "f:1").text[a:b] for a, b in chat.render(two, "f:1").spans] == ["b"]
    with pytest.raises(BadRow, match="f:1: the chat template does not keep earlier turns") as caught:
        chat.render(two * 2, "f:1")
    assert caught.value.reason == "rewritten_turn"


def test_label_mask_takes_whole_tokens_within_a_span() -> None:
    offsets = np.array([[0, 2], [2, 4], [4, 4], [4, 7], [7, 9], [9, 12]])
    assert label_mask(offsets, [(2, 7)]).tolist() == [False, True, False, True, False, False]
    assert label_mask(offsets, [(3, 9)]).tolist() == [False, False, False, True, True, False]
    assert label_mask(offsets, [(0, 2), (9, 12)]).tolist() == [True, False, False, False, False, True]


@pytest.fixture(scope="module")
def qwen3(kit: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(kit / "models" / "qwen3-tokenizer")


@pytest.mark.kit
@pytest.mark.parametrize("system", [(), ((SYSTEM, "You drive."),)])
def test_qwen3_answers_are_labelled_without_the_think_block(qwen3: Any, system: tuple) -> None:
    """Qwen3's template takes contents as texts only, and writes an empty think block before an answer."""
    encoder = Encoder(qwen3, qwen3.chat_template, None)
    sample = parse_row({"conversations": turns(*system, (USER, "Why?"), (ASSISTANT, "The light is red."))}, "f:1", ".")
    encoded, prompt = encoder.encode(sample), encoder.encode(sample, prompt=True)
    assert qwen3.decode(encoded["labels"][encoded["labels"] != IGNORE_INDEX]) == "The light is red.<|im_end|>"
    header = qwen3.decode(prompt["input_ids"])
    assert header.endswith("user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert qwen3.decode(encoded["input_ids"]) == header + "The light is red.<|im_end|>\n"
    assert encoder.lengths([encoder.render(sample, []).text], [[]]) == [len(encoded["input_ids"])]


@pytest.mark.kit
@pytest.mark.parametrize("answers", [("b", "c"), ("red", "red", "red"), ("<t", "user\nWhy?", " No.\nStop. ", "é")])
def test_qwen3_labels_all_answers_though_earlier_ones_lose_the_think_block(qwen3: Any, answers: tuple) -> None:
    encoder = Encoder(qwen3, qwen3.chat_template, None)
    rows = [turn for text in answers for turn in turns((USER, "Why?"), (ASSISTANT, text))]
    sample = parse_row({"conversations": rows}, "f:1", ".")
    encoded, prompt = encoder.encode(sample), encoder.encode(sample, prompt=True)
    labelled = encoded["labels"] != IGNORE_INDEX
    assert qwen3.decode(encoded["labels"][labelled]) == "".join(text + "<|im_end|>" for text in answers)
    starts = np.flatnonzero(np.diff(labelled.astype(int), prepend=0) == 1)
    heads = [qwen3.decode(encoded["input_ids"][:start]) for start in starts]
    assert len(heads) == len(answers)
    assert all(head.endswith("user\nWhy?<|im_end|>\n<|im_start|>assistant\n") for head in heads[:-1])
    # Before the last answer stands, token for token, what generation begins with.
    assert prompt["input_ids"].tolist() == encoded["input_ids"][: starts[-1]].tolist()


@pytest.mark.kit
@pytest.mark.parametrize("answers", [("<think>\nwhy\n</think>\n\nb", "c"), ("\nb", "c")])
def test_an_answer_that_qwen3_rewrites_is_a_bad_row(qwen3: Any, answers: tuple) -> None:
    """Of earlier answers the template drops their own thinking, of the last one the newlines it begins with."""
    rows = [turn for text in answers for turn in turns((USER, "a"), (ASSISTANT, text))]
    sample = parse_row({"conversations": rows}, "rows.jsonl:9", ".")
    with pytest.raises(BadRow, match=r"rows\.jsonl:9: the chat template does not keep earlier turns") as caught:
        Encoder(qwen3, qwen3.chat_template, None).encode(sample)
    assert caught.value.reason == "rewritten_turn"


# answer: what is learned of it, None for a bad row. A thought is written as the template writes it.
QWEN3_ANSWERS = {
    "<|box_start|>(1,2),(3,4)<|box_end|>": "<|box_start|>(1,2),(3,4)<|box_end|>",
    "<|object_ref_start|>car<|object_ref_end|>": "<|object_ref_start|>car<|object_ref_end|>",
    "<think>\nbecause\n</think>\n\nyes": "<think>\nbecause\n</think>\n\nyes",
    "<think>because</think>yes": "<think>\nbecause\n</think>\n\nyes",
    "<think>a<think>b</think>c</think>d": "<think>\na<think>b\n</think>\n\nc</think>d",
    "the tag </think> ends it": "the tag </think> ends it",
    "<think> opens": "<think> opens",
    "<tool_response>12</tool_response>": "<tool_response>12</tool_response>",
    "<|im_end|>": None,
    "<|vision_start|>": None,
    "<|image_pad|>": None,
}


@pytest.mark.kit
@pytest.mark.parametrize("question", ["Why?", "<tool_response>\nq\n</tool_response>", "</think>"])
def test_words_that_templates_look_for_train_and_the_tiny_template_equals_the_real_one(
    qwen3: Any, question: str
) -> None:
    """One exchange and two; what generation is given is how the row begins."""
    real, tiny = (Encoder(qwen3, template, None) for template in (qwen3.chat_template, chat_template(thinks=True)))
    for answer, learned in QWEN3_ANSWERS.items():
        for first in ((), ((USER, "a"), (ASSISTANT, "b </think> c"))):
            row = {"conversations": turns(*first, (USER, question), (ASSISTANT, answer))}
            sample = parse_row(row, "f:1", ".")
            if learned is None:
                for encoder in (real, tiny):
                    with pytest.raises(BadRow, match="reserved token"):
                        encoder.encode(sample)
                continue
            encoded, prompt, twin = real.encode(sample), real.encode(sample, prompt=True), tiny.encode(sample)
            words = "b </think> c<|im_end|>" * bool(first) + f"{learned}<|im_end|>"
            assert qwen3.decode(encoded["labels"][encoded["labels"] != IGNORE_INDEX]) == words
            assert qwen3.decode(encoded["input_ids"]).startswith(qwen3.decode(prompt["input_ids"]))
            for name in ("input_ids", "labels"):
                assert encoded[name].tolist() == twin[name].tolist()


@pytest.mark.kit
def test_the_tiny_template_with_the_tokenizer_of_qwen3(qwen3: Any, parts: Any) -> None:
    """The layout of InternVL3 on a real vocabulary: several turns, words that meet a newline."""
    encoder = Encoder(qwen3, parts.template, None)
    texts = ("b", " c\n", "\u00e9\n\nd")
    sample = parse_row(
        {"conversations": [t for text in texts for t in turns((USER, "a"), (ASSISTANT, text))]}, "f:1", "."
    )
    labels = encoder.encode(sample)["labels"]
    assert qwen3.decode(labels[labels != IGNORE_INDEX]) == "".join(text + "<|im_end|>" for text in texts)


def test_check_of_an_unlabelled_row_names_the_template(parts: Any, write_rows: Callable) -> None:
    """A template that drops the answers leaves nothing to learn: an error, not a row without a loss."""
    template = "{% for m in messages %}{{ m.role }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    sample = parse_row({"conversations": turns((USER, "a"), (ASSISTANT, "b"))}, "f:1", ".")
    with pytest.raises(BadRow, match="no token of the assistant could be labelled"):
        Encoder(parts.tokenizer, template, None).encode(sample)


def test_the_text_is_what_apply_chat_template_writes(qwen3: Any, encoder: Encoder) -> None:
    """ChatRenderer renders the compiled template itself."""
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", ("Is {{ it }} red?\n",)),
        Turn("assistant", ("<b>No</b> & 'yes'",)),
    ]
    for tokenizer, template in ((qwen3, qwen3.chat_template), (encoder.tokenizer, encoder.template)):
        chat = ChatRenderer(tokenizer, template, [])
        plain = chat.plain_text
        messages = [
            {"role": turn.role, "content": turn.text if plain else [{"type": "text", "text": turn.text}]}
            for turn in turns
        ]
        for prompt in (False, True):
            for thinking in (False, True):
                expected = tokenizer.apply_chat_template(
                    messages,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    enable_thinking=thinking,
                )
                assert chat._template(messages, prompt, thinking) == expected
