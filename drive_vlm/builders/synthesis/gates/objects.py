"""What the gates ask of a reader of texts. `rewards/text/open_names.py` has one; it stands on this floor, so tools hand it in."""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol


class Mention(Protocol):
    """An object that a text names.

    `start`, `end`: characters of the text. `classes`: what it means to a detector. `verdict`: hit: said to be there, and a source has
    it; false: said to be there, and no source has it that would have seen it; denied: said not to be there; unseen: no source can see
    such a thing, so it is neither right nor wrong; again: claims nothing more than another mention.
    """

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def verdict(self) -> str: ...


class ObjectReader(Protocol):
    """Reads the objects of texts. `visible`: the classes that a source could have seen."""

    @property
    def visible(self) -> frozenset[str]: ...

    def classes_of(self, label: str) -> frozenset[str]:
        """The classes that a source's label stands for."""

    def prepare(self, texts: Iterable[tuple[str, Collection[str]]]) -> None:
        """Read (text, labels) that `mentions` will be asked for: together they take a fraction of the time."""

    def mentions(self, text: str, labels: Collection[str]) -> Sequence[Mention]:
        """The object phrases of `text`, in order, judged against the `labels` that the sources have."""
