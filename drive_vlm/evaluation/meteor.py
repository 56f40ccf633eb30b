"""METEOR of texts (Banerjee & Lavie 2005, with Lavie & Agarwal's penalty), through NLTK's `meteor_score` (extra "eval").

    Fmean = P R / (0.9 P + 0.1 R)      METEOR = Fmean (1 - 0.5 (chunks / matches) ** 3)

P and R are the shares of matched words; words match exactly, then by Porter's stem, then as synonyms of WordNet, which NLTK
asks for the stems of what is left ("automobil" has none): kept, since numbers published with NLTK have it. WordNet's data is no
part of NLTK: without it there are no synonyms, and the score has another name (EXACT_AND_STEMS), since it is another number. METEOR 1.5
in Java, which COCO's package calls, has paraphrase tables and other weights: its numbers are not these.
"""

from collections.abc import Sequence
from typing import Any

from drive_vlm.evaluation.text_overlap import tokenize

METEOR, EXACT_AND_STEMS = "METEOR", "METEOR (exact and stems)"
GET_WORDNET = "python -c \"import nltk; nltk.download('wordnet')\", or NLTK_DATA=FOLDER with corpora/wordnet in it"


class _NoSynonyms:
    """Stands in for WordNet where its data is not there."""

    def synsets(self, word: str) -> list[Any]:
        return []


def open_wordnet() -> Any | None:
    """NLTK's WordNet, or None where its data is not in one of NLTK's folders. Raises ValueError without NLTK."""
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise ValueError(f"METEOR needs NLTK ({error}): pip install -e .[eval]") from error
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def meteor(
    hypotheses: Sequence[str], targets: Sequence[Sequence[str]], wordnet: Any | None = None
) -> tuple[str, list[float]]:
    """(name, METEOR of each text, 0-1): the best over its targets. The name is METEOR with the synonyms of `wordnet` (`open_wordnet`),
    EXACT_AND_STEMS without. Words are those of the COCO caption evaluation (`tokenize`).

    Raises ValueError where the lengths differ or a text has no target.
    """
    if len(hypotheses) != len(targets):
        raise ValueError(f"{len(hypotheses)} predictions but {len(targets)} sets of targets; give one set each")
    if (empty := next((i for i, texts in enumerate(targets) if not texts), None)) is not None:
        raise ValueError(f"sample {empty} has no target text")
    try:
        from nltk.translate.meteor_score import meteor_score
    except ImportError as error:
        raise ValueError(f"METEOR needs NLTK ({error}): pip install -e .[eval]") from error
    synonyms = wordnet or _NoSynonyms()
    scores = []
    for text, wanted in zip(hypotheses, targets, strict=True):
        words, references = tokenize(text), [tokenize(target) for target in wanted]
        scores.append(float(meteor_score(references, words, wordnet=synonyms)) if words else 0.0)
    return (METEOR if wordnet else EXACT_AND_STEMS), scores
