"""One parser for all tests of texts: loading spaCy takes longer than all of them."""

import pytest

from drive_vlm.rewards.text.driving_text import TextParser


@pytest.fixture(scope="session")
def parser(spacy_model: str) -> TextParser:
    return TextParser(spacy_model)
