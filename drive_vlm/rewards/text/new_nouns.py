"""Which nouns a rewritten text has that its source has not: facts that the writer may have made up."""

import re
import threading

from drive_vlm.rewards.text.driving_text import DEFAULT_MODEL, load_spacy, object_mentions, read_phrases
from drive_vlm.rewards.text.vocabulary import Term, load_vocabulary

# Words about the film itself and the car that films: they add no fact.
NEUTRAL_NOUNS = frozenset({"camera", "clip", "footage", "frame", "moment", "scene", "video", "view"})
_EGO = re.compile(r"\bego[ -](vehicle|car)\b", re.IGNORECASE)


class NounCheck:
    """Compares nouns by lemmas, and by what they mean to a detector: a source with "car" supports "vehicle".

    `model` is a spaCy pipeline's name or folder, `flag` the command line's name of it. Threads may share a NounCheck.
    Raises ValueError where spaCy or the pipeline is missing.
    """

    def __init__(self, model: str = DEFAULT_MODEL, flag: str = "--spacy_model") -> None:
        self._nlp = load_spacy(model, flag)
        self._vocabulary = load_vocabulary()
        self._lock = threading.Lock()

    def new_nouns(self, source: str, text: str) -> list[str]:
        """Lemmas of the nouns in `text` that nothing in `source` supports, sorted.

        A noun is supported by the same word or lemma, and by objects of its detector classes; NEUTRAL_NOUNS and the ego
        vehicle need no support.
        """
        with self._lock:
            given, written = self._nlp(source), self._nlp(_EGO.sub("it", text))
        known = {token.lemma_.lower() for token in given} | {token.lower_ for token in given} | NEUTRAL_NOUNS
        classes = {
            name
            for term, _, _ in object_mentions(read_phrases(given, self._vocabulary), self._vocabulary)
            for name in term.classes
        }
        mentions = object_mentions(read_phrases(written, self._vocabulary), self._vocabulary)
        synonyms = {noun.i for term, _, noun in mentions if _is_supported(term, classes)}
        nouns = [token for token in written if token.pos_ in ("NOUN", "PROPN") and token.is_alpha]
        return sorted({token.lemma_.lower() for token in nouns if token.i not in synonyms} - known)


def _is_supported(term: Term, classes: set[str]) -> bool:
    """A cyclist needs a person and a bicycle, a vehicle any of its kinds."""
    return bool(term.classes & classes) and (term.kind != "class" or term.classes <= classes)
