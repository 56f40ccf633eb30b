"""Does a text say that an object is there, or that it is not? Rules over spaCy's dependency tree, one noun at a time.

Covered: "no cars", "neither cars nor buses", "no cars, buses or trucks", "without any cars", "free of cars", "no sign of
a car", "an absence of cars", "there are not any cars", "there aren't any cars moving", "nobody has a car", "a car cannot be
seen", "cars are absent", "lacks cars", "hardly any cars", "a car-free street", "a bus rather than a car", "a bus, not a car",
"potential cars", "whether a car comes", "there isn't a car, a bus, or a truck", "not occupied by any cars", "cars: none", "devoid of cars, trucks, and people", "the absence of cars and dogs", "no pedestrian activity", "few, if any, cars", "nothing suggests the presence of cars", "absent are any cars".
Not negated: "not only cars", "not all cars stop", "no bus, only a truck", "the car does not stop", "the bus no longer waits", "not clear of cars",
"no lack of cars", "it steers clear of the car", "clear of cars and pedestrians walk by".

A library does not replace this: negspacy 1.1 (NegEx) fails 37 of the 153 sentences of tests/rewards/text/test_driving_text.py
with its own phrases, and 13 with phrases tuned to them; it scans words and does not see lists, clauses or "the car does not stop".
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokens import Token

# Behind a hyphen: "car-free".
FREE = {"free", "less"}
_NO = {"no", "neither", "nor", "zero", "0"}
# "not only cars", "not all cars stop", "there are not many cars"
_SOME = {"only", "all", "every", "each", "much", "many"}
_NO_ANSWERS = {"no", "none", "not", "zero", "0", "absent", "n/a"}
_HARDLY = {"hardly", "barely", "scarcely"}
_UNREAL = {"potential", "possible", "hypothetical", "imaginary", "absent", "nonexistent"}
_VOID_NOUNS = {"absence", "lack", "dearth", "none"}
_VOID = _VOID_NOUNS | {"free", "clear", "devoid", "empty", "void", "bereft", "instead", "absent", "barren", "bare", "vacant", "rid", "cleared", "emptied"}  # fmt: skip
# "The car steers clear of the truck"; what is not a place keeps or stays clear of something as well.
_AVOID = {"steer", "move", "pull", "veer", "swerve", "drive", "back", "get", "swing"}
_KEEP = {"keep", "stay", "remain"}
_PLACES = {"road", "roadway", "street", "lane", "way", "path", "intersection", "junction", "crosswalk", "sidewalk", "pavement", "highway", "area", "scene", "route", "side", "view", "track", "shoulder", "crossing", "avenue", "lot"}  # fmt: skip
_ACTIVITIES = {"activity", "activities", "presence", "movement", "movements", "traffic", "flow", "congestion"}
_SINGULAR = ("NN", "NNP", "JJ")
_JOINS = {"and", "or", "nor", ",", "/", "&"}
_SIGNS = {"sign", "trace", "evidence", "presence", "sight", "hint", "indication", "sighting", "glimpse"}
_ABSENT = {"absent", "missing", "lacking", "nonexistent", "unseen", "invisible"}
_PRESENT = {"visible", "present", "apparent", "evident", "noticeable", "observable", "discernible"}
_SEE = {"see", "detect", "observe", "find", "notice", "spot", "show", "depict", "encounter", "identify", "locate"}
_APPEAR = {"appear", "exist"}
# What nothing does where nothing is there; "nothing blocks the car" has a car.
_SUGGEST = {"suggest", "indicate", "show", "reveal", "hint", "imply", "signal", "point"}
_LACK = {"lack", "exclude", "want", "absent"}
_DOUBT = {"if", "whether", "unless"}
_EXCEPT = {"but", "except", "besides", "than"}
_WITHOUT = {"without", "sans", "minus", "lacking"}
_LIST_WORDS = {",", "or", "nor", "any", "stop", "-", "other", "both", "either"}
_VAGUE_DETERMINERS = {"a", "an", "any", "another", "single", "either"}


def is_negated(noun: "Token", first: "Token | None" = None) -> bool:
    """Whether the text denies, or only imagines, what the phrase from `first` to `noun` names. A list of nouns shares the first one's negation
    until a noun has a determiner or number of its own ("no cars, buses or trucks", but "no car and a bus")."""
    if _in_denied_list(noun, first or noun):
        return True
    noun = activity_head(noun) or phrase_head(noun)
    if _denied(noun):
        return True
    while noun.dep_ in ("conj", "appos"):
        first = noun.head
        # "no bus, only a truck"
        if any(word.lower_ in ("only", "just") for word in noun.children):
            return False
        if _denied_between(first, noun):
            return True
        if first.dep_ == "pobj" and _begins_clause(noun, first.head.head):
            return False
        if _has_own_determiner(noun) or any(word.lower_ == "but" for word in first.children):
            return False
        if _denied(first):
            return True
        noun = first
    return False


def activity_head(noun: "Token") -> "Token | None":
    """`activity` of "pedestrian activity" and of "pedestrian or cyclist activity": what the noun does, not another thing."""
    if noun.tag_ not in _SINGULAR:
        return None
    for word in noun.doc[noun.i + 1 :]:
        joined = word.nbor(-1).lower_ in _JOINS
        if word.lower_ in _ACTIVITIES:
            return None if joined else word
        if word.lower_ not in _JOINS and not (joined and word.tag_ in _SINGULAR):
            return None
    return None


def phrase_head(noun: "Token") -> "Token":
    """The last noun of a compound: `lights` for `traffic`."""
    while noun.dep_ == "compound" and noun.head.i > noun.i:
        noun = noun.head
    return noun


def _denied(noun: "Token") -> bool:
    if any(_denies(word, noun) for word in noun.children) or _is_free_compound(noun) or _answered_no(noun):
        return True
    if noun.dep_ == "pobj":
        if any(word.lower_ == "any" for word in noun.children) and _verb_negated(noun.head.head):
            return True
        return _denied_by_preposition(noun.head) or (_of_nobody(noun.head) and _is_vague(noun))
    verb = noun.head
    if any(word.dep_ == "mark" and word.lower_ in _DOUBT for word in verb.children):
        return True
    if noun.dep_ in ("dobj", "attr", "oprd"):
        indefinite = noun.dep_ == "attr" or not _has_own_determiner(noun)
        if (_verb_negated(verb) or _nobody_acts(verb) or _nothing_suggests(noun)) and indefinite:
            return True
        if verb.lemma_ in _LACK and not _verb_negated(verb):
            return True
    if verb.lemma_ == "be" and verb.i < noun.i and _absent_before(verb):
        return True
    return noun.dep_ in ("nsubj", "nsubjpass") and (_denied_as_subject(verb) or _denied_as_scene(verb, noun))


def _absent_before(verb: "Token") -> bool:
    """ "Absent are any cars", "absent from the scene are cars": the state stands before the verb, what lacks behind it."""
    before = [word for word in verb.children if word.i < verb.i]
    # "Absent a light, there are cars" has a subject before the verb.
    if any(word.dep_ in ("expl", "nsubj") and word.lower_ not in _ABSENT for word in before):
        return False
    states = [*before, *([verb.nbor(-1)] if verb.i > 0 else [])]
    return any(word.lower_ in _ABSENT for word in states) and not _verb_negated(verb)


def _denies(word: "Token", noun: "Token") -> bool:
    if word.i > noun.i:
        return False
    if word.lower_ in _NO:
        return _next(word) != "longer"
    if (
        word.lower_ in ("any", "a", "an", "one")
        and word.i > 0
        and word.nbor(-1).lower_ in _HARDLY | {"if", "not", "nary"}
    ):
        return True
    return (word.dep_ == "neg" and _next(word) not in _SOME) or word.lower_ in _HARDLY or word.lower_ in _UNREAL


def _in_denied_list(noun: "Token", first: "Token") -> bool:
    """ "No traffic lights, stop signs or buses", "devoid of cars, trucks, and people", whatever tree the parser makes of it: nouns,
    adjectives and commas, behind a "no", a "without" or a negated verb around an "or", behind "devoid of" around an "and" too."""
    doc = noun.doc
    start = _list_start(first, _LIST_WORDS)
    before = doc[start - 1] if start > 0 else None
    # "Few, if any, cars"
    if before is not None and before.lower_ == "if" and doc[start].lower_ == "any":
        return True
    if before is not None and (before.lower_ in ("no", "neither", "without") or _verb_negated(before)):
        end = noun.i + 1
        while end < len(doc) and _is_list_word(doc[end], _LIST_WORDS):
            end += 1
        if any(word.lower_ in ("or", "nor") for word in doc[start:end]):
            return True
    start = _list_start(first, _LIST_WORDS | _JOINS)
    before = doc[start - 1] if start > 1 else None
    if before is None or before.lower_ not in ("of", "from") or not _denied_by_preposition(before):
        return False
    return not _begins_clause(noun, doc[start - 2])


def _list_start(first: "Token", joins: set[str]) -> int:
    start = first.i
    while start > 0 and _is_list_word(first.doc[start - 1], joins):
        start -= 1
    return start


def _is_list_word(word: "Token", joins: set[str]) -> bool:
    if word.lower_ in joins or word.tag_.startswith("NN") or word.tag_ in ("JJ", "VBN", "``", "''"):
        return True
    # "Parked or moving cars"; the tagger takes "parked" and "dump" of a list for verbs.
    verbal = word.tag_ == "VBG" or (
        word.tag_ in ("VBD", "VB") and word.i > 0 and word.nbor(-1).lower_ in _JOINS | {"of", "no"}
    )
    return verbal and word.i + 1 < len(word.doc) and word.nbor().tag_.startswith("NN")


def _begins_clause(noun: "Token", void: "Token") -> bool:
    """ "The road is clear of cars and pedestrians walk by": the noun behind the "and" is who walks. Not in "the absence of cars and
    pedestrians makes it calm", where the absence does."""
    before = noun.nbor(-1) if noun.i > 0 else noun
    while before.i > 0 and before.tag_ in ("JJ", "VBN", "VBG", "NN"):
        before = before.nbor(-1)
    if before.lower_ not in ("and", ",") or (
        void.lower_ in _VOID_NOUNS and void.dep_ in ("nsubj", "nsubjpass", "ROOT")
    ):
        return False
    behind = next((word for word in noun.doc[noun.i + 1 :] if word.tag_ != "RB"), None)
    return behind is not None and behind.tag_ in ("VBP", "VBZ", "VBD", "MD")


def _next(word: "Token") -> str:
    return word.doc[word.i + 1].lower_ if word.i + 1 < len(word.doc) else ""


def _denied_between(first: "Token", noun: "Token") -> bool:
    """ "A car, not a truck": the negation hangs on the first noun and stands before the second."""
    return any(word.dep_ == "neg" and first.i < word.i < noun.i for word in first.children)


def _is_free_compound(noun: "Token") -> bool:
    """ "car-free"."""
    behind = noun.doc[noun.i + 1 : noun.i + 3]
    return len(behind) == 2 and behind[0].text == "-" and behind[1].lower_ in FREE


def _answered_no(noun: "Token") -> bool:
    """ "Pedestrians: none", "traffic lights: not visible"."""
    behind = noun.doc[noun.i + 1 : noun.i + 3]
    return len(behind) == 2 and behind[0].text == ":" and behind[1].lower_ in _NO_ANSWERS


def _denied_by_preposition(preposition: "Token") -> bool:
    word, governor = preposition.lower_, preposition.head
    if word in _WITHOUT:
        return True
    if word == "than":
        return any(child.lower_ == "rather" for child in preposition.children)
    if word == "from":
        return governor.lemma_ in ("free", "absent", "miss") and not _is_denied_state(governor)
    if word in ("including", "like") or (word == "as" and preposition.i > 0 and preposition.nbor(-1).lower_ == "such"):
        return governor.tag_.startswith("NN") and is_negated(governor)
    if word == "in":
        return governor.lower_ == "lacking" and not _is_denied_state(governor)
    if word != "of":
        return False
    if any(child.lower_ == "instead" for child in preposition.children):
        return True
    if governor.lower_ in _VOID:
        return not _is_denied_state(governor) and not _keeps_clear(governor)
    return governor.lemma_ in _SIGNS and (is_negated(governor) or _nothing_suggests(governor))


def _nothing_suggests(noun: "Token") -> bool:
    """ "Nothing suggests the presence of cars", "nothing points to the presence of cars"."""
    verb = noun.head.head if noun.dep_ == "pobj" else noun.head
    return verb.lemma_ in _SUGGEST and any(
        word.dep_ == "nsubj" and word.lower_ == "nothing" and word.i < noun.i for word in verb.children
    )


def _is_denied_state(state: "Token") -> bool:
    """ "Not clear of cars", "far from empty of cars", "no lack of cars"."""
    if any(word.dep_ == "neg" for word in state.children) or (state.i > 0 and state.nbor(-1).lower_ == "from"):
        return True
    if state.tag_.startswith("NN"):
        return is_negated(state)
    return state.dep_ in ("acomp", "oprd", "attr", "advmod") and _verb_negated(state.head)


def _keeps_clear(state: "Token") -> bool:
    """ "It steers clear of the truck", "the driver stays clear of cars", not "the road stays clear of cars"."""
    verb = state.head
    if state.lower_ != "clear" or verb.lemma_ not in _AVOID | _KEEP:
        return False
    subjects = {word.lemma_.lower() for word in verb.children if word.dep_ in ("nsubj", "nsubjpass")}
    return verb.lemma_ in _AVOID or not subjects & _PLACES


def _verb_negated(verb: "Token") -> bool:
    """By not or never, by "nowhere", by "no longer"; "there do not appear to be" passes it on."""
    for word in verb.children:
        if word.lower_ == "nowhere" or (word.dep_ == "neg" and _next(word) not in _SOME):
            return True
        if word.lower_ == "longer" and any(child.lower_ == "no" for child in word.children):
            return True
    if verb.dep_ == "conj" and any(word.lower_ == "nor" and word.i < verb.i for word in verb.head.children):
        return True
    return verb.dep_ == "xcomp" and verb.head.lemma_ in ("appear", "seem") and _verb_negated(verb.head)


def _nobody_acts(verb: "Token") -> bool:
    """ "No one rides a bike"."""
    return any(word.dep_ == "nsubj" and _is_nobody(word) for word in verb.children)


def _is_nobody(word: "Token") -> bool:
    return word.lower_ == "nobody" or (word.lower_ == "one" and any(child.lower_ == "no" for child in word.children))


def _of_nobody(preposition: "Token") -> bool:
    """ "No one on a bike", "nobody walks with a dog"; not "no one but a cyclist"."""
    governor = preposition.head
    return preposition.lower_ not in _EXCEPT and (_is_nobody(governor) or _nobody_acts(governor))


def _is_vague(noun: "Token") -> bool:
    return any(word.lower_ in _VAGUE_DETERMINERS for word in noun.children)


def _denied_as_scene(verb: "Token", noun: "Token") -> bool:
    """ "There aren't any cars moving", "I don't see any cars moving": who is not there is the subject of what is not there."""
    scene = verb.head
    if verb.tag_ not in ("VBG", "VBN") or verb.dep_ not in ("attr", "ccomp", "xcomp") or _has_own_determiner(noun):
        return False
    there = any(word.dep_ == "expl" for word in scene.children)
    return (there or scene.lemma_ in _SEE) and (_verb_negated(scene) or _nobody_acts(scene))


def _denied_as_subject(verb: "Token") -> bool:
    negated = _verb_negated(verb)
    if any(word.lower_ == "nowhere" for word in verb.children):
        return True
    if verb.lemma_ == "be":
        states = {word.lemma_.lower() for word in verb.children if word.dep_ in ("acomp", "attr", "oprd")}
        return bool(states & (_PRESENT if negated else _ABSENT))
    if verb.lemma_ == "miss" and verb.tag_ == "VBG":
        return not negated and not any(word.dep_ == "dobj" for word in verb.children)
    if verb.lemma_ in _APPEAR:
        return negated and not any(word.dep_ == "xcomp" for word in verb.children)
    return negated and verb.lemma_ in _SEE and any(word.dep_ == "auxpass" for word in verb.children)


def _has_own_determiner(noun: "Token") -> bool:
    """A definite one or a number: "the car", "two cars", "its car"; not "a car", "any cars", "cars"."""
    if noun.dep_ == "conj" and any(word.lower_ in ("a", "an") for word in noun.children):
        joins = [word for item in (noun, *noun.conjuncts) for word in item.children if word.dep_ == "cc"]
        # The nearest conjunction before the noun, else the nearest behind it.
        joins.sort(key=lambda word: (word.i > noun.i, abs(word.i - noun.i)))
        return not joins or joins[0].lower_ not in ("or", "nor")
    return any(
        (word.dep_ in ("det", "nummod", "poss") and word.lower_ not in _VAGUE_DETERMINERS)
        or word.lower_ in ("several", "many", "numerous")
        for word in noun.children
    )
