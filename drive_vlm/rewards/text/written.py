"""Which nouns of a text are only written, named or pictured: quotations, words on signs, names of shops and streets.

Covered: 'a sign reads "Bus Lane"', "a sign reading No Trucks", "a sign for trucks", "a billboard shows a car", "a mural of a
horse", "Dunkin' Donuts", "Pizza Hut", "Children's Hospital". The sign itself may be an object: 'a sign that says "STOP"'.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

QUOTES = {'"', "“", "”", "„", "‟", "«", "»", "'", "‘", "’", "`", "``", "''"}
_QUOTE = re.compile("[" + "".join({mark[0] for mark in QUOTES}) + "]")
_SAY = {"say", "read", "spell", "state", "write", "label", "mark", "name", "call", "title", "letter", "inscribe", "print", "stencil", "brand", "dub", "flash"}  # fmt: skip
_SHOW = {"show", "display", "indicate", "warn", "prohibit", "forbid", "ban", "restrict", "allow", "permit", "advertise", "promote", "depict", "picture", "portray", "represent", "feature", "instruct", "alert", "caution", "announce", "direct", "remind", "tell", "ask", "denote", "bear"}  # fmt: skip
_SHOWING = {f"{verb.removesuffix('e')}ing" for verb in _SHOW} | {"forbidding", "banning", "permitting"}
_SIGNS = {"sign", "signboard", "signage", "billboard", "banner", "placard", "poster", "advertisement", "advert", "ad", "board", "marquee", "storefront", "sticker", "decal", "marking", "notice", "mural", "symbol", "icon", "logo", "emblem", "pictogram", "label", "screen", "display", "awning", "graffiti", "signal"}  # fmt: skip
_WORDS = {"word", "words", "letter", "letters", "lettering", "text", "message", "inscription", "phrase", "slogan", "name", "caption", "title"}  # fmt: skip
_PICTURES = {"mural", "poster", "drawing", "painting", "symbol", "icon", "logo", "statue", "sculpture", "sticker", "decal", "silhouette", "pictogram", "emblem", "illustration", "graphic", "pictograph", "advertisement", "advert", "ad", "graffiti", "figurine"}  # fmt: skip
# "A sign with a picture of a bicycle"; a picture of a street is the scene itself.
_INSIDE = {"of", "with", "in", "for", "about", "against"}
_NOT_IN_NAMES = {"DT", "IN", "CC", "PRP", "PRP$", "EX", "WRB", "WDT", "WP", "RB", "TO"}
_JOINS = {"'", "’", "'s", "’s", "&"}


def is_quote(token: "Token") -> bool:
    return token.text in QUOTES and token.tag_ != "POS"


def phrase_tokens(doc: "Doc", quoted: dict[int, tuple[int, int]]) -> list["Token"]:
    """What phrases are matched against: 'a "STOP" sign' and "double-decker" are two words each. `quoted`: quotations(doc)."""
    closing = {end for _, end in quoted.values()}
    return [
        token
        for token in doc
        if not token.is_space and token.text != "-" and not is_quote(token) and token.i not in closing
    ]


def quotations(doc: "Doc") -> dict[int, tuple[int, int]]:
    """Index of each token within quotation marks -> (first, behind the last) of its quotation."""
    found: dict[int, tuple[int, int]] = {}
    # Most texts have none: one look at the text is cheaper than one at each token.
    if not _QUOTE.search(doc.text):
        return found
    opened: int | None = None
    for token in doc:
        if token.text not in QUOTES:
            continue
        free_before = token.i == 0 or bool(token.nbor(-1).whitespace_) or not token.nbor(-1).text.isalnum()
        if opened is None:
            # An apostrophe hangs on the word before it: "the cars' lights".
            opened = token.i + 1 if free_before and not token.whitespace_ else None
        elif not token.nbor(-1).whitespace_ or token.text == '"':
            found |= dict.fromkeys(range(opened, token.i), (opened, token.i))
            opened = None
    return found


def is_written(first: "Token", noun: "Token", quoted: dict[int, tuple[int, int]]) -> bool:
    """Whether the phrase from `first` to `noun` is a text that somebody reads, or what a sign or a picture shows."""
    if first.i in quoted and noun.i in quoted:
        start, end = quoted[noun.i]
        return _is_writing(noun.doc, start, end, (first.i, noun.i + 1) == (start, end))
    return (noun.i > 0 and noun.nbor(-1).lower_ in {"word", "words", "named", "called"}) or _is_shown(noun)


def _is_writing(doc: "Doc", start: int, end: int, phrase: bool) -> bool:
    """A quotation that is read off something, unlike a word that its author would rather not use: 'the "car" stops'. `phrase`: the
    object is all of it."""
    words = [token for token in doc[start:end] if token.is_alpha]
    before = next((token for token in reversed(doc[max(0, start - 4) : start - 1]) if token.is_alpha), None)
    behind = doc[end + 1] if end + 1 < len(doc) else None
    if len(words) > 2 or (len(words) > 1 and all(map(_is_capital, words)) and not phrase):
        return True
    # "So-called" is no name.
    if (
        before is not None
        and (before.lemma_ in _SAY | _SHOW | _SIGNS or before.lower_ in _WORDS)
        and before.nbor(-1 if before.i else 0).text != "-"
    ):
        return True
    if any(word.lemma_ in _SAY | _SIGNS | {"paint"} or word.lower_ in _WORDS for word in doc[end + 1 : end + 2]) or any(
        word.tag_ == "VBN" and word.lemma_ in _SAY | {"paint"} for word in doc[end + 1 : end + 3]
    ):
        return True
    is_name = before is not None and before.tag_ != "DT" and not (behind is not None and behind.tag_.startswith("NN"))
    return is_name and all(token.is_upper for token in words)


def _is_shown(noun: "Token") -> bool:
    """ "A sign prohibiting trucks", "the sign says that trucks must turn", "a sign with a bicycle", "a mural of a horse"."""
    if _behind_shows(noun):
        return True
    word, on_picture = noun, False
    while word.head.i != word.i:
        head = word.head
        if word.dep_ == "pobj":
            owner = head.head
            if owner.i == head.i:
                return False
            if head.lower_ not in _INSIDE:
                # "A statue of a man on a horse"
                word, on_picture = owner, True
                if not owner.tag_.startswith("NN"):
                    return False
                continue
            if not on_picture and owner.lemma_ in _SIGNS and head.lower_ in _INSIDE - {"in", "of"}:
                return True
            if owner.lemma_ in _PICTURES and head.lower_ == "of":
                return True
            word = owner
            if not on_picture and owner.lemma_ in _SHOW and _is_sign(_subject(owner)):
                return True
            if not owner.tag_.startswith("NN"):
                return False
        elif word.dep_ in ("dobj", "ccomp", "xcomp", "oprd", "dative") and head.lemma_ in _SHOW | _SAY:
            return not on_picture and _is_sign(_subject(head))
        elif (word.dep_ in ("nsubj", "nsubjpass", "dobj", "attr") and head.dep_ in ("ccomp", "xcomp")) or (
            word.dep_ in ("conj", "compound", "appos", "nmod", "ccomp", "xcomp", "nsubj")
            and (word.dep_ != "nsubj" or word.i > head.i)
        ):
            word = head
        else:
            return False
    return False


def _behind_shows(noun: "Token") -> bool:
    """ "A billboard advertising pickup trucks", which the parser takes for one compound."""
    place = noun.i - 1
    while place > 0 and noun.doc[place].tag_ in ("DT", "JJ", "NN", "CD") and not noun.doc[place].lower_.endswith("ing"):
        place -= 1
    shows = noun.doc[place]
    return place > 0 and shows.lower_ in _SHOWING and shows.nbor(-1).lemma_ in _SIGNS | _PICTURES


def _subject(verb: "Token") -> "Token | None":
    while True:
        found = next((word for word in verb.children if word.dep_ in ("nsubj", "nsubjpass")), None)
        if found is not None and found.tag_ not in ("WDT", "WP"):
            return found
        if verb.dep_ in ("acl", "relcl"):
            return verb.head
        if verb.dep_ != "conj" or found is not None:
            return None
        verb = verb.head


def _is_sign(word: "Token | None") -> bool:
    return word is not None and word.lemma_ in _SIGNS


def words_of_sign(sign: "Token") -> str:
    """What the text says that `sign` reads, in lower case, where that is one word: "stop" of 'a sign that says "STOP"'."""
    doc = sign.doc
    said = False
    for place in range(sign.i + 1, min(sign.i + 8, len(doc))):
        token = doc[place]
        if said and token.text.isalpha() and token.lower_ not in _WORDS and token.tag_ not in ("DT", "IN", "JJ"):
            behind = doc[place + 1] if place + 1 < len(doc) else None
            alone = behind is None or not (behind.text[:1].isupper() or behind.tag_ == "NN" or behind.lower_ == "here")
            return token.lower_ if alone and (token.text[0].isupper() or is_quote(doc[place - 1])) else ""
        quoted_next = token.lower_ == "with" and place + 1 < len(doc) and is_quote(doc[place + 1])
        if quoted_next or token.lemma_ in _SAY | {"display", "show", "bear"} or token.lower_ in _WORDS:
            said = True
        elif not said and token.lower_ not in ("that", "which", "clearly", "simply", "is", ",", "with", "the"):
            return ""
    return ""


def is_name(first: "Token", noun: "Token", mobile: bool) -> bool:
    """Whether the phrase is a piece of a name: "Dunkin' Donuts", "Bed Bath & Beyond", "Children's Hospital". `mobile`: what the
    phrase means bears names ("a Greyhound Bus", "a Yellow Cab"), which other things do not ("Red Bull", "Five Guys")."""
    if not _is_capital(noun) or noun.is_upper or _is_headline(noun):
        return False
    return _names_beside(noun, 1) or (not mobile and _names_beside(first, -1))


def _names_beside(word: "Token", step: int) -> bool:
    doc, place = word.doc, word.i + step
    while 0 <= place < len(doc) and doc[place].text in _JOINS and (doc[place].text != "’" or doc[place].tag_ == "POS"):
        place += step
    return 0 <= place < len(doc) and _is_capital(doc[place]) and doc[place].tag_[:2] in ("NN", "JJ", "CD")


def _is_capital(word: "Token") -> bool:
    return word.text[0].isupper()


def _is_headline(word: "Token") -> bool:
    """Where most words begin with a capital, one more does not make a name."""
    words = [token for token in word.sent if token.is_alpha and token.tag_ not in _NOT_IN_NAMES]
    return len(words) > 3 and sum(map(_is_capital, words)) >= 0.75 * len(words)
