"""METEOR: numbers by hand from its formula, stems, synonyms only where WordNet is, several targets."""

from types import SimpleNamespace

import pytest

from drive_vlm.evaluation.meteor import EXACT_AND_STEMS, METEOR, meteor

pytest.importorskip("nltk")


def formula(matches: int, said: int, wanted: int, chunks: int) -> float:
    precision, recall = matches / said, matches / wanted
    return precision * recall / (0.9 * precision + 0.1 * recall) * (1 - 0.5 * (chunks / matches) ** 3)


def one(text: str, *targets: str, wordnet=None) -> float:
    name, scores = meteor([text], [targets], wordnet)
    assert name == (METEOR if wordnet else EXACT_AND_STEMS)
    return scores[0]


def test_formula_by_hand() -> None:
    assert one("the car stops here", "the car stops here") == pytest.approx(formula(4, 4, 4, 1), abs=1e-9)
    # Five of six and of seven words, in two chunks.
    assert one("the cat sat on a mat", "on a mat sat the cat now") == pytest.approx(formula(6, 6, 7, 3), abs=1e-9)
    assert one("it stops", "turn left") == one("", "turn left") == 0


def test_stems_match_and_synonyms_need_wordnet() -> None:
    assert one("the car stopped", "the car stops") == pytest.approx(formula(3, 3, 3, 1), abs=1e-9)
    plain = one("the automobile stops", "the car stops")
    assert plain == pytest.approx(formula(2, 3, 3, 2), abs=1e-9)
    # NLTK looks up the stems of what is left, not the words: kept, since published numbers have it.
    lemmas = [SimpleNamespace(name=lambda: "car"), SimpleNamespace(name=lambda: "motor_car")]
    known = SimpleNamespace(synsets=lambda word: [SimpleNamespace(lemmas=lambda: lemmas)] * (word == "automobil"))
    assert one("the automobile stops", "the car stops", wordnet=known) == pytest.approx(formula(3, 3, 3, 1), abs=1e-9)


def test_the_best_target_counts() -> None:
    assert one("turn left", "go ahead", "turn left") == one("turn left", "turn left")
    with pytest.raises(ValueError, match="sample 0 has no target"):
        meteor(["x"], [[]])
    with pytest.raises(ValueError, match="1 predictions but 2"):
        meteor(["x"], [["x"], ["y"]])
