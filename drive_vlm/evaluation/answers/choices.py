"""The letter that an answer to a multiple-choice question names.

Strict: the answer is the letter and nothing else, as official scripts compare it. Lenient (`read_choice`), in this order:

1. JSON: its field "answer", "choice" or "option", which is read as a text.
2. Claims: the whole answer is a letter ("(a)", "Option B."), it begins with one ("A. Going ahead", "B: ..."), it says so ("the
   answer is C", "I choose D", "B is correct", "therefore (C)"), or its last line is a letter. A claim in a clause that denies it
   ("not", "neither"), or that ends with a question mark, is none.
   Words of an option in double quotes are a claim too.
3. The words of exactly one option, alone, after "the answer is", or as the end of "... is going ahead." where no other is named.

Claims of two letters are unread, and so is a letter next to another option's words. A list of the options before one claim is no
claim of its own. Letters that the question does not offer are unread.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from drive_vlm.evaluation.answer_accuracy import normalize_answer
from drive_vlm.evaluation.answers.said import Said, answer_parts, json_object, of_fields, plain, unread

LETTERS = "ABCDEFGHIJ"
# "A. ", "(B) ", "C: " before an option in a question.
_MARKER = re.compile(r"(?<![\w.])\(?([A-J])[.):]\s+")
_QUOTES = "\"'“”‘’«»"
_OPEN, _CLOSE = r"[(\[<{\"']*", r"[)\]>}\"']*"
_NOUN = r"(?:answer|option|choice|letter|response|selection)"
_SURE = r"(?:most likely|likely|probably|clearly|definitely|certainly|simply|just|thus|therefore|the)"
_WHOLE = re.compile(rf"\W*(?:{_NOUN}\s*(?:is\b)?[:=]?\s*)?{_OPEN}([A-Ja-j]){_CLOSE}\W*", re.IGNORECASE)
# "A.", "A)", "A:", "A -", "A" before a new line; a small letter only with a point or a bracket, since "a" is an article.
_BEGINS = re.compile(
    rf"\W*(?:{_NOUN}\s*[:=]?\s*)?(?:{_OPEN}([A-J])(?=[)\]>}}\"'.:,;/&|]|\s*[-–—=]|\s*\n|\s+(?:or|and|because|since|as)\b|\s*$)|\(?([a-j])(?=[.)]))",
)
_SAYS = re.compile(
    rf"\b{_NOUN}(?:\s+(?:is|would be|should be|must be|has to be|will be)\b(?:\s*:)?|\s*[:=])(?:\s+{_SURE}\b)*(?:\s+{_NOUN})?\s*:?\s*{_OPEN}([A-Ja-j])(?![\w']|-\w)"
    rf"|\b(?:I|we)(?:'d| would|'ll| will)?\s+(?:choose|chose|select|pick|go with|answer with|answer)\s+(?:{_NOUN}\s+)?{_OPEN}([A-Ja-j])(?![\w']|-\w)"
    rf"|(?<![\w.]){_OPEN}([A-J]){_CLOSE}\s+is\s+(?:also\s+)?(?:the\s+)?(?:most\s+)?"
    rf"(?:correct|right|best|true|likely|appropriate|accurate)(?:\s+(?:{_NOUN}|one))?\s*(?=[.,;:!)]|$|\n|(?:because|since|as|here)\b)"
    rf"|\b(?:it|this|that)(?:'s| is)\s+(?:{_NOUN}\s+)?{_OPEN}([A-J])(?![\w']|-\w)"
    rf"|\b(?:so|thus|hence|therefore|conclusion)\s*[,:]?\s*(?:it is\s+)?(?:{_NOUN}\s+)?{_OPEN}([A-J])(?![\w']|-\w)",
    re.IGNORECASE,
)
_LAST = re.compile(rf"(?:^|\n)\s*(?:{_NOUN}\s*[:=]?\s*)?{_OPEN}([A-J]){_CLOSE}[.!]?\s*$")
# What may follow a letter that is also a word ("A car", "I think"), or a small one.
_ENDS = re.compile(r"\s*(?:$|[)\]>}\"'.:,;!?/&|=\n–—-]|(?:because|since|as|which|with|for|due|or|and|is|for)\b)")
_ALSO = re.compile(
    rf"^{_CLOSE}\s*(?:,|/|&|\||\bor\b|\band\b|\band/or\b)+\s*(?:{_NOUN}\s+)?{_OPEN}([A-J])(?![\w']|-\w)", re.IGNORECASE
)
_DENIES = re.compile(
    r"\b(?:not|cannot|never|neither|nor|hardly|unlikely|unsure|uncertain|whether|either|wrong|incorrect|rather than|instead of)\b|n't\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.;!?\n,]")
_LEAD = re.compile(
    rf"^(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|best)\s+)*{_NOUN}\s*(?:is\b|[:=])\s*(?:that\s+)?", re.IGNORECASE
)
_WRONG = re.compile(
    r"\b(?:wrong|incorrect|false|impossible|not (?:correct|right|true|the))\b|n't (?:correct|right|true|the)\b",
    re.IGNORECASE,
)
_NAMED = re.compile(rf"\b(?:option|choice|answer)\s+{_OPEN}([A-J])(?![\w']|-\w)")
# Characters around a claim that can change it, and behind it that an option's words may take.
_NEAR, _LONG = 500, 2000
_QUOTED = re.compile(r'"([^"\n]{1,300})"|“([^”\n]{1,300})”')
_SENTENCE = re.compile(r"[.!;\n]+")


def options_of(question: str) -> dict[str, str]:
    """The options that a question lists, {letter: words}, from its last "A." on; {} where it lists fewer than two.

    >>> options_of("What is it? A. Going ahead. B. Turn left.")
    {'A': 'Going ahead', 'B': 'Turn left'}
    """
    marks = list(_MARKER.finditer(question))
    starts = [index for index, mark in enumerate(marks) if mark[1] == "A"]
    if not starts:
        return {}
    chosen: list[re.Match[str]] = []
    for mark in marks[starts[-1] :]:
        if mark[1] == LETTERS[len(chosen)]:
            chosen.append(mark)
        if len(chosen) == len(LETTERS):
            break
    ends = [mark.start() for mark in chosen[1:]] + [len(question)]
    found = {
        mark[1]: question[mark.end() : end].strip().rstrip(".;,").strip()
        for mark, end in zip(chosen, ends, strict=True)
    }
    return found if len(found) > 1 else {}


def strict_choice(text: str, options: Mapping[str, str]) -> Said[str]:
    """The letter, where the answer is that letter and nothing else: not even a blank or a point."""
    return Said(text) if text in options else unread("not exactly one letter")


def read_choice(text: str, options: Mapping[str, str]) -> Said[str]:
    """The letter of `options` {letter: words} that the answer names. Words may be "" where they are not known.

    >>> read_choice("The correct answer is B.", {"A": "", "B": ""}).value
    'B'
    """
    if not text.strip():
        return unread("empty")
    parts = answer_parts(text)
    readings = [_of_part(part, options) for part in parts]
    letters = {reading.value for reading in readings}
    if len(letters) > 1:
        return next((reading for reading in readings if not reading.read), unread("two different choices"))
    return readings[0]


def _of_part(part: str, options: Mapping[str, str]) -> Said[str]:
    fields, whole = json_object(part)
    if fields is not None:
        found = of_fields(fields, lambda value: _of_value(value, options), (), "choices")
        around = "" if whole else part[: part.find("{")] + "\n" + part[part.rfind("}") + 1 :]
        others = {*_claims(plain(around), options)} - {found.value}
        return unread("two different choices, one of them in JSON") if found.read and others else found
    if part.startswith("{"):
        return unread("broken JSON")
    return _of_text(plain(part), options)


def _of_value(value: Any, options: Mapping[str, str]) -> Said[str]:
    """A JSON field's value: a text, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _of_text(plain(value), options) if isinstance(value, str) else unread("the JSON field is no text")


def _of_text(text: str, options: Mapping[str, str]) -> Said[str]:
    if not text:
        return unread("empty")
    said = {*_claims(text, options)}
    if not said:
        return _by_words(text, options)
    if len(said) > 1:
        return unread(f"two different choices: {', '.join(sorted(said))}")
    letter = said.pop()
    return Said(letter) if letter in options else unread(f"{letter} is none of the options {', '.join(options)}")


def _claims(text: str, options: Mapping[str, str]) -> Iterator[str]:
    """Every letter that the text claims; another option's words next to a claim are a claim of that option."""
    if whole := _WHOLE.fullmatch(text):
        if not text.rstrip().endswith("?"):
            yield whole[1].upper()
        return
    places = [(_letter(match), match.end()) for match in _SAYS.finditer(text) if _stands(match, text)]
    for quote in _QUOTED.finditer(text):
        clause = _CLAUSE.split(text[max(0, quote.start() - _NEAR) : quote.start()])[-1]
        equal = [letter for letter, words in options.items() if words and _same(words, quote[1] or quote[2])]
        places += [(letter, quote.end()) for letter in equal if not _DENIES.search(clause)]
    if last := _LAST.search(text):
        places.append((last[1], last.end()))
    places += _weak(text, options, places)
    for letter, end in places:
        yield letter
        rest = text[end : end + _NEAR]
        while also := _ALSO.match(rest):
            yield also[1].upper()
            rest = rest[also.end() :]
    # The text after the first claim of a letter holds what is behind its later ones.
    for letter in {letter for letter, _ in places}:
        first = min(end for said, end in places if said == letter)
        yield from _contradiction(letter, text[first:], options)


def _weak(text: str, options: Mapping[str, str], strong: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """(letter, end) of marks "B. ..." that are claims. Options that are listed, two or more of them, say nothing before a claim, and
    one that the text calls wrong is none. Where marks are all there is, options that are named elsewhere count too."""
    marks = [(match[1], match.end()) for match in _marks(text, options)]
    if (begins := _BEGINS.match(text)) and begins.end() not in {end for _, end in marks}:
        marks.append((_letter(begins), begins.end()))
    marks = [
        (letter, end) for letter, end in marks if not _called_wrong(text[end : end + _NEAR], options.get(letter, ""))
    ]
    if not strong:
        return marks + [(match[1].upper(), match.end()) for match in _NAMED.finditer(text) if marks]
    first = min(end for _, end in strong)
    before = [mark for mark in marks if mark[1] <= first]
    return [mark for mark in marks if mark[1] > first] + (before if len({letter for letter, _ in before}) == 1 else [])


def _called_wrong(after: str, words: str) -> bool:
    """Whether the sentence of a mark, its option's `words` left aside, says that the option is wrong."""
    rest = after.lstrip(" .):,")
    rest = rest[len(words) :] if words and rest.casefold().startswith(words.casefold()) else rest
    return _WRONG.search(_SENTENCE.split(rest, maxsplit=1)[0]) is not None


def _marks(text: str, options: Mapping[str, str]) -> Iterator[re.Match[str]]:
    """Marks "B. ", "(C) " at the beginning of a sentence or a line, as of an option, or before that option's words."""
    for match in _MARKER.finditer(text):
        before = text[max(0, match.start() - _NEAR) : match.start()].rstrip(" \t([-*•")
        words = options.get(match[1], "").casefold()
        own = words and text[match.end() : match.end() + len(words)].casefold() == words
        if own or not before or before[-1] in ".!?:;\n":
            yield match


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()


def _stands(match: re.Match[str], text: str) -> bool:
    """Whether a claim is one: its clause does not deny it, it is no question, and the letter is no article or pronoun."""
    group = next(number for number, said in enumerate(match.groups(), start=1) if said)
    clause = _CLAUSE.split(text[max(0, match.start() - _NEAR) : match.end()])[-1]
    if _DENIES.search(clause) or re.match(r"\W*\?", text[match.end() :]):
        return False
    if match[group].isupper() and match[group] not in "AI":
        return True
    return _ENDS.match(text, match.end(group)) is not None


def _contradiction(letter: str, after: str, options: Mapping[str, str]) -> Iterator[str]:
    """Options other than `letter` whose words follow it, or stand as any sentence of the text after it."""
    own, rest = normalize_answer(options.get(letter, "")), normalize_answer(after[:_LONG])
    sentences = {normalize_answer(sentence) for sentence in _SENTENCE.split(after)} - {"", own}
    follows_own = own and f"{rest} ".startswith(f"{own} ")
    for other, known in options.items():
        words = normalize_answer(known)
        # Words that the own option holds as well say nothing against it.
        if other == letter or not words or f" {words} " in f" {own} ":
            continue
        if words in sentences or (not follows_own and f"{rest} ".startswith(f"{words} ")):
            yield other


def _same(words: str, said: str) -> bool:
    return normalize_answer(words) == normalize_answer(said)


def _by_words(text: str, options: Mapping[str, str]) -> Said[str]:
    """The one option whose words the text is, alone, after "the answer is", or at the end of a sentence with "is" that names no other."""
    words = {normalize_answer(text), normalize_answer(_LEAD.sub("", text.strip(_QUOTES + " ")))} - {""}
    known = {letter: normalize_answer(said) for letter, said in options.items() if normalize_answer(said)}
    equal: Sequence[str] = [letter for letter, said in known.items() if said in words]
    if len(equal) == 1:
        return Said(equal[0])
    # "B Turn left": the letter counts where its own words follow it.
    beside = [letter for letter in known if normalize_answer(f"{letter}: {options[letter]}") in words]
    if len(beside) == 1 and not equal:
        return Said(beside[0])
    whole = f" {normalize_answer(text)} "
    named = [letter for letter, said in known.items() if f" {said} " in whole]
    ends = [letter for letter in named if whole.endswith((f" is {known[letter]} ", f" are {known[letter]} "))]
    if len(named) == len(ends) == 1 and not _DENIES.search(text) and not text.rstrip(_QUOTES + " ").endswith("?"):
        return Said(ends[0])
    return unread("the words of two options" if len(equal) > 1 or len(named) > 1 else "no choice")
