"""BLEU, ROUGE-L and CIDEr against hand computation and against numbers of `pycocoevalcap` 1.2 (Java tokenizer)."""

import math

import pytest

from drive_vlm.evaluation.text_overlap import bleu, bleu_counts, cider, language_scores, lcs_length, rouge_l, tokenize


def corpus_bleu(hypotheses, targets):
    return bleu(bleu_counts(hypotheses, targets).sum(axis=0)).tolist()


# The right side is what the Stanford PTBTokenizer of pycocoevalcap 1.2 gives, punctuation removed.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "The IDs of these objects are <c1,CAM_BACK,1088.3,497.5>, and <c3,CAM_FRONT,1043.2,82.2>.",
            "the ids of these objects are < c1 cam_back ,1088.3,497.5 > and < c3 cam_front ,1043.2,82.2 >",
        ),
        ("It can't go, don't (really); isn't it?", "it ca n't go do n't -lrb- really -rrb- is n't it"),
        ("the ego-vehicle's [speed]: I'm, you'll", "the ego-vehicle 's -lsb- speed -rsb- i 'm you 'll"),
        ("A. Going ahead. B. Stopped. C", "a. going ahead b. stopped c"),
        ("options: A. The car. 60.33m. I'm at 5 m. The end.", "options a the car 60.33 m. i 'm at 5 m the end"),
        ("cannot gonna wanna gimme", "can not gon na wan na gim me"),
        ("no.1 by:1. Failing stop. stop.Next word,word", "no. 1 by :1 failing stop stop.next word word"),
        ("50 km/h at 3:30 p.m. U.S. cars--and trucks...", "50 km/h at 3:30 p.m. u.s. cars and trucks"),
        ("e.g. 10% $5.00 1,000 1/2", "e.g. 10 % $ 5.00 1,000 1/2"),
        ("<image> 1. The champagne-colored \"quoted\" 'single'", "<image> 1 the champagne-colored quoted single"),
        ("hello!! what?! wait... **bold** 5.5 10-20 -5 2nd", "hello !! what ?! wait ** bold ** 5.5 10-20 -5 2nd"),
        ("", ""),
    ],
)
def test_tokenize_like_the_caption_evaluation(text, words):
    assert " ".join(tokenize(text)) == words


def test_bleu_by_hand():
    hypothesis, reference = ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "is", "on", "the", "mat"]
    # 1-grams 5/6, 2-grams 3/5 (the cat, on the, the mat), 3-grams 1/4 (on the mat), 4-grams 0/3; equal lengths.
    scores = corpus_bleu([hypothesis], [[reference]])
    wanted = [5 / 6, math.sqrt(5 / 6 * 3 / 5), (5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3)]
    assert scores[:3] == pytest.approx(wanted, rel=1e-8)
    assert scores[3] == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1e-15 / 3) ** 0.25, rel=1e-8)


def test_bleu_clips_counts_takes_the_closest_length_and_punishes_brevity():
    # "the the the": "the" is clipped to 2, the closest reference has 3 words (on a tie the shorter): no penalty.
    assert corpus_bleu([["the"] * 3], [[["the", "the", "a"], ["a", "b", "c", "d", "e"]]])[0] == pytest.approx(2 / 3)
    assert corpus_bleu([["a", "b"]], [[["a", "b", "c", "d"]]])[0] == pytest.approx(math.exp(1 - 4 / 2))
    # Corpus, not mean of sentences: (1 + 0) / (1 + 3) words match.
    assert corpus_bleu([["a"], ["x", "y", "z"]], [[["a"]], [["p", "q", "r"]]])[0] == pytest.approx(1 / 4)


def test_rouge_l_by_hand():
    assert lcs_length(["police", "killed", "the", "gunman"], ["police", "kill", "the", "gunman"]) == 3
    assert lcs_length([], ["a"]) == 0
    # LCS "a c" = 2: precision 2/2, recall 2/4, F = (1 + 1.44) * 1 * 0.5 / (0.5 + 1.44 * 1).
    assert rouge_l([["a", "c"]], [[["a", "b", "c", "d"]]]) == pytest.approx([2.44 * 0.5 / 1.94])
    # Best precision and best recall may come from different references.
    assert rouge_l([["a", "b"]], [[["a"], ["a", "b", "c", "d"]]]) == pytest.approx([1.0])
    assert rouge_l([["x"], []], [[["y"]], [["y"]]]) == [0.0, 0.0]


def test_cider_by_hand():
    # Two documents, idf = ln 2 for what one document has and 0 for "a", which both have. Of the hypothesis "a b",
    # 1-grams: vector (b: ln 2) . (b: ln 2) -> cosine 1; 2-grams: "a b" -> cosine 1; no 3- and 4-grams -> 0.
    scores = cider([["a", "b"], ["a", "x"]], [[["a", "b"]], [["a", "c"]]])
    assert scores == pytest.approx([10 * (1 + 1 + 0 + 0) / 4, 0.0])


def test_cider_clips_and_punishes_length():
    # "b b b" against "b": clipped to the reference, 1 * 1 / (3 * 1) = 1/3 of 1-grams alone; 2 bigrams against none.
    scores = cider([["b"] * 3, ["z"]], [[["b"]], [["z"]]])
    assert scores[0] == pytest.approx(10 * (1 / 3) / 4 * math.exp(-(2**2) / (2 * 36)))
    assert cider([["b"]], [[["b"]]]) == [0.0]  # one document: every idf is ln 1 = 0


def test_numbers_of_the_package():
    hypotheses = ["i am a boy", "she is a girl"]
    references = ["am i a boy ?", "is she a girl ?"]
    wanted = {
        "Bleu_1": 0.9999999997500004,
        "Bleu_2": 0.5773502690332603,
        "Bleu_3": 4.3679023223468616e-06,
        "Bleu_4": 1.4287202142987477e-08,
        "ROUGE_L": 0.75,
        "CIDEr": 3.333333333333333,
    }
    assert language_scores(hypotheses, references) == pytest.approx(wanted, rel=1e-12)


def test_several_references_and_their_order_do_not_matter():
    texts = ["a red car stops", "two people walk"]
    references = [["a car stops", "the red car is stopping"], ["two people", "people are walking now"]]
    first = language_scores(texts, references)
    assert first == pytest.approx(language_scores(texts[::-1], [r[::-1] for r in references[::-1]]))


def test_refusals():
    with pytest.raises(ValueError, match="2 predictions but 1"):
        corpus_bleu([["a"], ["b"]], [[["a"]]])
    with pytest.raises(ValueError, match="sample 0 has no target"):
        cider([["a"]], [[]])
    with pytest.raises(ValueError, match="empty set"):
        language_scores([], [])
