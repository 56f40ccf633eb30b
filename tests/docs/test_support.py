"""docs/support.md is what the marks of the tests say, and a mark with a wrong word is refused."""

import pytest
from support_matrix import PAGE, page, parse


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python tests/docs/support_matrix.py --write"


def test_a_claim_in_words() -> None:
    claim = parse("internvl sft lora zero2", "t")
    assert (claim.traits, claim.outcome) == (("zero2", "lora"), "tested")
    assert parse("* grpo packing refused", "t").outcome == "refused"


@pytest.mark.parametrize(
    "text", ["", "internvl", "internvl tsf", "intervl sft", "internvl sft zero4", "internvl sft refused lora"]
)
def test_unknown_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"some_test: .* is not FAMILY STAGE"):
        parse(text, "some_test")
