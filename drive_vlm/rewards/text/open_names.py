"""The objects of a text for any list of names: an open-vocabulary detector's labels, a data base's names, or COCO's classes.

The vocabulary knows what words mean to a detector of COCO's classes. A name that it does not know, or that such a detector cannot see
("traffic cone"), becomes a class of its own; a class that no name of the list stands for is one that nobody could have seen.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drive_vlm.rewards.text.driving_text import DEFAULT_MODEL, TextParser
from drive_vlm.rewards.text.mentions import Mention, mentions_of
from drive_vlm.rewards.text.vocabulary import DEFAULT, PhraseTable, Term, Vocabulary, phrase_words

if TYPE_CHECKING:
    from spacy.tokens import Doc

# Texts whose mentions are kept.
MEMO = 1 << 18


class OpenNames:
    """Reads the objects of texts against labels; builders/synthesis/gates/objects.py says for whom.

    Attributes:
        names: what the sources can see, as given; None: the classes of the vocabulary.
        visible: the classes that these names stand for.
    """

    def __init__(
        self,
        names: Iterable[str] | None,
        model: str = DEFAULT_MODEL,
        vocabulary: str | Path = DEFAULT,
        processes: int = 1,
    ) -> None:
        """`processes`: of spaCy, for `prepare`. Raises ValueError as TextParser."""
        self.names = None if names is None else sorted(set(names))
        self._parser = TextParser(model, vocabulary, processes)
        # Several gates read one text.
        self._memo: OrderedDict[tuple[str, frozenset[str]], tuple[Mention, ...]] = OrderedDict()
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

    def mentions(self, text: str, labels: Collection[str]) -> Sequence[Mention]:
        """The object phrases of `text`, judged as drive_vlm/rewards/text/mentions.py does, but `unseen` where a class that is missing
        is none that the names stand for."""
        key = (text, frozenset(labels))
        if key not in self._memo:
            self._keep(key, self._parser.doc(text))
        self._memo.move_to_end(key)
        return self._memo[key]

    def prepare(self, texts: Iterable[tuple[str, Collection[str]]]) -> None:
        """Read (text, labels) that will be asked for, MEMO of them at most: together they take a fraction of the time."""
        keys = dict.fromkeys((text, frozenset(labels)) for text, labels in texts)
        missing = [key for key in keys if key not in self._memo][:MEMO]
        for key, doc in zip(missing, self._parser.docs([text for text, _ in missing]), strict=True):
            self._keep(key, doc)

    def _keep(self, key: tuple[str, frozenset[str]], doc: "Doc") -> None:
        while len(self._memo) >= MEMO:
            self._memo.popitem(last=False)
        self._memo[key] = tuple(self._read(doc, key[1]))

    def _read(self, doc: "Doc", labels: Collection[str]) -> Iterator[Mention]:
        seen = frozenset().union(*(self.classes_of(label) for label in labels))
        hidden = self._every - self.visible
        for mention in mentions_of(doc, self._parser.vocabulary, seen | hidden):
            # A hit that rests on what nobody could see alone.
            if mention.verdict == "hit" and not seen & set(mention.classes):
                mention = dataclasses.replace(mention, verdict="unseen")
            yield mention


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
