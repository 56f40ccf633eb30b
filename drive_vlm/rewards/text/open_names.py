"""The objects of a text for any list of names: an open-vocabulary detector's labels, a data base's names, or COCO's classes.

The vocabulary knows what words mean to a detector of COCO's classes. A name that it does not know, or that such a detector cannot see
("traffic cone"), becomes a class of its own; a class that no name of the list stands for is one that nobody could have seen.
"""

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path

from drive_vlm.rewards.text.driving_text import DEFAULT_MODEL, TextParser
from drive_vlm.rewards.text.mentions import Mention, find_mentions
from drive_vlm.rewards.text.vocabulary import DEFAULT, PhraseTable, Term, Vocabulary, phrase_words


class OpenNames:
    """Reads the objects of texts against labels; builders/synthesis/gates/objects.py says for whom.

    Attributes:
        names: what the sources can see, as given; None: the classes of the vocabulary.
        visible: the classes that these names stand for.
    """

    def __init__(
        self, names: Iterable[str] | None, model: str = DEFAULT_MODEL, vocabulary: str | Path = DEFAULT
    ) -> None:
        """Raises ValueError as TextParser."""
        self.names = None if names is None else sorted(set(names))
        self._parser = TextParser(model, vocabulary)
        known = self._parser.vocabulary
        if self.names is not None:
            known = self._parser.vocabulary = with_names(known, self.names)
        self._every = known.required | known.optional
        self.visible = (
            self._every if self.names is None else frozenset().union(*(self.classes_of(name) for name in self.names))
        )

    def classes_of(self, label: str) -> frozenset[str]:
        """The classes of a label: several for one that leaves open which ("vehicle"), the label itself where no list has it."""
        phrase = _phrase(label)
        term = self._parser.vocabulary.objects.get(phrase)
        return term.classes if term is not None and term.classes else frozenset([phrase])

    def mentions(self, text: str, labels: Collection[str]) -> list[Mention]:
        """The object phrases of `text`, judged as drive_vlm/rewards/text/mentions.py does, but `unseen` where a class that is missing
        is none that the names stand for."""
        seen = frozenset().union(*(self.classes_of(label) for label in labels))
        hidden = self._every - self.visible
        found = []
        for mention in find_mentions(self._parser, text, seen | hidden):
            # A hit that rests on what nobody could see alone.
            if mention.verdict == "hit" and not seen & set(mention.classes):
                mention = dataclasses.replace(mention, verdict="unseen")
            found.append(mention)
        return found


def with_names(vocabulary: Vocabulary, names: Iterable[str]) -> Vocabulary:
    """`vocabulary` with a class for each of `names` that it does not know or takes for something unseen."""
    phrases = {_phrase(name) for name in names}
    own = {
        phrase: Term(phrase, "class", frozenset([phrase]))
        for phrase in sorted(phrases)
        if phrase and vocabulary.objects.get(phrase, Term(phrase, "unseen")).kind == "unseen"
    }
    objects = vocabulary.objects | own
    return dataclasses.replace(
        vocabulary,
        objects=objects,
        optional=vocabulary.optional | own.keys(),
        table=PhraseTable(objects, plural=True),
    )


def _phrase(label: str) -> str:
    """A label as the vocabulary writes phrases: "traffic_cone" -> "traffic cone"."""
    return " ".join(phrase_words(label.replace("_", " ").strip()))
