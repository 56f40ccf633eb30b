"""The vocabulary of driving words, read from a YAML file that people change (driving_words.yaml says what it means)."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from drive_vlm.config import nearest

DEFAULT = Path(__file__).with_name("driving_words.yaml")
_CLASS_MAPS = ("classes", "optional_classes", "makes")
_WORD_MAPS = ("several", "either", "hypernyms")
# Each of their words stands among the objects as well.
_REFERENCES = ("back_reference", "names", "vehicle_parts")
_LISTS = (*_REFERENCES, "apart", "unseen", "safety_critical", "temporal", "not_temporal", "dynamic_verbs", "adjectives")

Kind = Literal["class", "either", "hypernym", "unseen"]


@dataclasses.dataclass(frozen=True)
class Term:
    """What a phrase means: the classes that it names (class), or of which one verifies it (either, hypernym)."""

    phrase: str
    kind: Kind
    classes: frozenset[str] = frozenset()


class PhraseTable(dict[str, list[tuple[tuple[str, ...], Any]]]):
    """Phrases by their first word, longest first: [(words, value), ...]."""

    def __init__(self, phrases: Mapping[str, Any], plural: bool = False) -> None:
        super().__init__()
        for phrase, value in phrases.items():
            # spaCy leaves "F-150" whole and cuts "CR-V".
            for words in {phrase_words(phrase), tuple(phrase.lower().split())}:
                for end in {words[-1], *(plurals(words[-1]) if plural else ())}:
                    whole = (*words[:-1], end)
                    self.setdefault(whole[0], []).append((whole, value))
        for entries in self.values():
            entries.sort(key=lambda entry: -len(entry[0]))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary file.

    Attributes:
        objects: phrase -> Term, of everything that the file lists as an object.
        required: classes that count as missed when they are detected and not named.
        optional: classes that do not.
        safety_critical: classes that the hallucination term looks at.
        back_reference: words that claim nothing where they point at what was named before.
        apart: classes next to which a word of kind either is another object.
        makes: names of makes; names: object words that count with a capital letter only; vehicle_parts: words that name a part
            of a vehicle where they belong to one.
        coloured_class, coloured_nouns, colours: "the light turns green" names the class.
        coloured_phrases: the nouns, alone and behind a colour; lamp_bearers: classes whose own lights are not traffic lights.
        table, word_table: `objects`, and temporal words and adjectives, for matching.
    """

    objects: dict[str, Term]
    required: frozenset[str]
    optional: frozenset[str]
    safety_critical: frozenset[str]
    back_reference: frozenset[str]
    makes: frozenset[str]
    names: frozenset[str]
    apart: frozenset[str]
    vehicle_parts: frozenset[str]
    dynamic_verbs: frozenset[str]
    temporal: frozenset[str]
    adjectives: frozenset[str]
    coloured_class: str
    coloured_nouns: frozenset[str]
    colours: frozenset[str]
    coloured_phrases: frozenset[str]
    lamp_bearers: frozenset[str]
    table: PhraseTable
    word_table: PhraseTable

    def check_labels(self, labels: Iterable[str], source: str) -> None:
        """Raise ValueError for detector labels that no list of classes has: they could never be named."""
        unknown = sorted(set(labels) - self.required - self.optional)
        if unknown:
            raise ValueError(
                f"{source}: the detector's class {unknown[0]!r} is not in the vocabulary ({len(unknown)} unknown: "
                f"{', '.join(unknown[:5])}); add it with its words to classes or optional_classes of a copy of {DEFAULT} "
                "and give that file (--physics_vocabulary)"
            )


def phrase_words(phrase: str) -> tuple[str, ...]:
    """Words as spaCy cuts them, without hyphens: "bird's eye view" -> bird 's eye view."""
    return tuple(re.sub(r"'s\b", " 's", phrase.lower()).replace("-", " ").split())


def plurals(word: str) -> set[str]:
    """Regular plurals of an English noun; irregular ones are listed in the file."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return {word + "es"}
    return {word[:-1] + "ies"} if re.search(r"[^aeiou]y$", word) else {word + "s"}


@lru_cache(maxsize=8)
def load_vocabulary(path: str | Path = DEFAULT) -> Vocabulary:
    """Read and check the file. Raises ValueError that names the file and the entry: unknown or missing sections, a word
    in two lists, a class that is not listed."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such vocabulary file; copy {DEFAULT} and change it")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    _check_shape(content, path)
    required, optional = (frozenset(content[name]) for name in _CLASS_MAPS[:2])
    coloured = content["coloured_light"]
    named = {name: content[name].values() for name in _WORD_MAPS}
    named |= {
        "makes": [content["makes"]],
        "safety_critical": [content["safety_critical"]],
        "apart": [content["apart"]],
        "coloured_light": [[coloured["class"], *coloured["not_of"]]],
    }
    for section, lists in named.items():
        for name in (item for items in lists for item in items):
            if name not in required | optional:
                raise ValueError(f"{path}: {section} names the class {name!r}, which is in no list of classes")
    objects = _objects(content, path)
    for section in _REFERENCES:
        unknown = [word for word in content[section] if word not in objects]
        if unknown:
            raise ValueError(f"{path}: {section} has {unknown[0]!r}, which is not an object word")
    words = dict.fromkeys(content["temporal"], "temporal") | dict.fromkeys(content["not_temporal"], "none")
    words |= dict.fromkeys(content["adjectives"], "adjective")
    return Vocabulary(
        objects=objects,
        required=required,
        optional=optional,
        coloured_class=coloured["class"],
        coloured_nouns=frozenset(coloured["nouns"]),
        colours=frozenset(coloured["colours"]),
        coloured_phrases=frozenset(
            f"{colour} {noun}".strip() for colour in ("", *coloured["colours"]) for noun in coloured["nouns"]
        ),
        lamp_bearers=frozenset(coloured["not_of"]),
        makes=frozenset(phrase for phrases in content["makes"].values() for phrase in phrases),
        table=PhraseTable(objects, plural=True),
        word_table=PhraseTable(words),
        **{
            name: frozenset(content[name])
            for name in (*_REFERENCES, "apart", "safety_critical", "dynamic_verbs", "temporal", "adjectives")
        },
    )


def _objects(content: dict[str, Any], path: Path) -> dict[str, Term]:
    terms = [
        Term(phrase, "class", frozenset([name]))
        for section in _CLASS_MAPS
        for name, phrases in content[section].items()
        for phrase in phrases
    ]
    kinds: tuple[tuple[str, Kind], ...] = (("several", "class"), ("either", "either"), ("hypernyms", "hypernym"))
    for section, kind in kinds:
        terms += [Term(phrase, kind, frozenset(names)) for phrase, names in content[section].items()]
    terms += [Term(phrase, "unseen") for phrase in content["unseen"]]
    objects: dict[str, Term] = {}
    for term in terms:
        if term.phrase in objects:
            raise ValueError(f"{path}: the word {term.phrase!r} stands twice; give each word one meaning")
        objects[term.phrase] = term
    return objects


def _check_shape(content: Any, path: Path) -> None:
    sections = {*_CLASS_MAPS, *_WORD_MAPS, *_LISTS, "coloured_light"}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected sections {', '.join(sorted(sections))}")
    for name in sorted(content.keys() ^ sections):
        raise ValueError(
            f"{path}: {'no' if name in sections else 'unknown'} section {name!r}.{nearest(name, sections)}"
        )
    for name in _LISTS:
        _check_words(content[name], f"{path}: {name}")
    for name in (*_CLASS_MAPS, *_WORD_MAPS):
        if not isinstance(content[name], dict):
            raise ValueError(f"{path}: {name} must be lines `name: [words]`")
        for key, words in content[name].items():
            _check_words([key, *words] if isinstance(words, list) else None, f"{path}: {name}: {key}")
    coloured = content["coloured_light"]
    if not isinstance(coloured, dict) or coloured.keys() != {"class", "nouns", "colours", "not_of"}:
        raise ValueError(f"{path}: coloured_light needs class, nouns, colours and not_of")
    for name in ("nouns", "colours", "not_of"):
        _check_words(coloured[name], f"{path}: coloured_light: {name}")


def _check_words(words: Any, where: str) -> None:
    if not isinstance(words, list):
        raise ValueError(f"{where} must be a list of words in brackets")
    for word in words:
        if not isinstance(word, str) or not word.strip() or word != word.lower():
            raise ValueError(f"{where}: {word!r} is not a lower-case word (quote yes, no, on, off and numbers)")
