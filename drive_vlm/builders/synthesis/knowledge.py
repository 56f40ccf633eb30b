"""What a name means, looked up in a file: a full-text index (SQLite FTS5) over titles, aliases and texts with url and licence.

Names of objects are few and titles are many, so a wrong page is the danger, not a missing one. A name is looked up in this order:
1. the title, letter for letter, then without case, hyphens and a regular plural; "Crane (machine)" is also an alias "crane";
2. an alias; one that stands for several titles stands for none ("ambiguous");
3. for a name of several words, BM25 over pages whose title or an alias holds the whole name ("Aerial ladder truck" for "ladder
   truck"); never because a text has the words. A single word is not searched for: among 10,033 introductions of Wikipedia the search
   found pages for 7 of our names, all of one word and all wrong ("cone": Southern Cone, "barrier": Great Barrier Reef);
4. else there is no description.
Of a text at most two sentences are taken, and none with a year: what an object has been since 1885 does not help to drive.
"""

import dataclasses
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.builders.synthesis.records import Description
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.sources import open_sources
from drive_vlm.store.cache import read_json

WIKIPEDIA_LICENCE = "CC BY-SA 4.0"
FORM = 1
# Letters of an article that are kept: its introduction.
_INTRODUCTION = 1500
# How much a word of the title or of an alias counts next to one of the text.
_WEIGHTS = "5.0, 5.0, 1.0"
_YEAR = re.compile(
    r"\b(1\d{3}|20\d{2})s?\b|\b\d{1,2}(st|nd|rd|th)[ -](and \d{1,2}(st|nd|rd|th)[ -])?centur|\b\d+ (BCE?|AD|CE)\b|\b(AD|c\.) ?\d+",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
# A full stop behind one of these, or behind a single capital letter, ends no sentence.
_ABBREVIATION = re.compile(
    r"(\b([A-Z]|e\.g|i\.e|etc|vs|approx|esp|St|Dr|Mr|Mrs|No|Inc|Ltd|Jr)|\b[A-Za-z]\.[A-Za-z])\.[\"')\]]*$"
)
_WORD = r"\w+"
# Pages of the search that are looked at.
_LOOKED_AT = 20
_WAY_OUT = "Make it with tools/synth_knowledge.py"
_TABLES = """
create table about (name text primary key, value text) without rowid;
create table entries (id integer primary key, title text, text text, url text, licence text, retrieved text);
create table names (name text, kind text, entry integer);
create index names_by_name on names (name);
create virtual table search using fts5(title, aliases, text, tokenize = 'unicode61');
"""


@dataclass(frozen=True)
class Entry:
    """A page: what it is called, what it says, where it is from. `retrieved`: the day, or "" where nobody noted it."""

    title: str
    text: str
    url: str
    licence: str
    aliases: tuple[str, ...] = ()
    retrieved: str = ""


# Reading ----------------------------------------------------------------------------------------------------------------------


def read_entries(path: Path) -> Iterator[Entry]:
    """Entries of JSON lines {title, aliases, text, url, licence, retrieved}; aliases and retrieved may be missing.

    Raises ValueError, naming file and line, for a line that is none, and for a text without a licence.
    """
    rows = JsonlFile(path)
    for i in range(len(rows)):
        row, where = rows[i], rows.where(i)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object with title, text, url and licence, got {str(row)[:60]!r}")
        texts = {name: _text(row, name, where) for name in ("title", "text", "licence")}
        aliases = row.get("aliases") or []
        if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
            raise ValueError(f"{where}: aliases must be a list of texts, got {str(aliases)[:60]!r}")
        more = {name: str(row.get(name) or "") for name in ("url", "retrieved")}
        yield Entry(**texts, **more, aliases=tuple(aliases))


def read_wikipedia(path: Path, retrieved: str = "") -> Iterator[Entry]:
    """Introductions of the articles of a file of `wikimedia/wikipedia`: rows {id, url, title, text}, .parquet or .jsonl; the licence
    of Wikipedia's texts. Raises ValueError, naming the row, for one that is none."""
    for source in open_sources([str(path)]):
        for i in range(len(source.rows)):
            row, where = source.row(i), source.where(i)
            title, text, url = (_text(row, name, where) for name in ("title", "text", "url"))
            if introduction := introduction_of(text):
                yield Entry(title, introduction, url, WIKIPEDIA_LICENCE, retrieved=retrieved)


def read_introductions(path: Path, url: str, retrieved: str = "") -> Iterator[Entry]:
    """Introductions of Wikipedia in one JSON object {title: {"title", "extract"}}, as offline packages hold them.

    `url`: what stands before a title in its address. Raises ValueError, naming the entry, for one that is none.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected one JSON object of titles, got a {type(content).__name__}")
    for name, row in content.items():
        where = f"{path}: {name}"
        title = _text(row, "title", where)
        # Half of such files is pages without an introduction.
        if introduction := introduction_of(str(row.get("extract") or "")):
            yield Entry(title, introduction, url + title.replace(" ", "_"), WIKIPEDIA_LICENCE, retrieved=retrieved)


def introduction_of(text: str) -> str:
    """The paragraphs of an article before its first heading, 1,500 letters at most, whole paragraphs; "" for a page that only lists
    what a name may refer to."""
    found: list[str] = []
    for paragraph in filter(None, (" ".join(part.split()) for part in text.split("\n\n"))):
        # A heading is a short paragraph without an end; the first is the article's own text.
        if found and (paragraph[-1] not in ".!?\"')" or sum(map(len, found)) + len(paragraph) > _INTRODUCTION):
            break
        found.append(paragraph)
    whole = " ".join(found)
    return "" if re.search(r"\b(may|can) (also )?refer to:?$", whole[:200].strip()) else whole


def with_redirects(entries: Iterable[Entry], redirects: Any, where: str) -> Iterator[Entry]:
    """The entries, each with the names that `redirects` {name: title} leads to it as further aliases. Raises ValueError for anything
    but an object of texts, and at the end where not one of them leads to an entry."""
    if not isinstance(redirects, dict) or not all(isinstance(title, str) for title in redirects.values()):
        raise ValueError(f"{where}: expected one JSON object {{name: title}}")
    names: dict[str, list[str]] = {}
    for name, title in redirects.items():
        names.setdefault(title, []).append(name)
    used = False
    for entry in entries:
        more = names.get(entry.title, [])
        used = used or bool(more)
        yield dataclasses.replace(entry, aliases=(*entry.aliases, *more)) if more else entry
    if redirects and not used:
        raise ValueError(
            f"{where}: none of its {len(redirects):,} names leads to an entry (first {next(iter(redirects))!r})"
        )


def _text(row: Any, name: str, where: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name} must be a text that is not empty, got {str(value)[:60]!r}")
    return value.strip()


# Writing ----------------------------------------------------------------------------------------------------------------------


def write_knowledge(path: Path, entries: Iterable[Entry], sources: Sequence[str]) -> dict[str, Any]:
    """Write the index, whole or not at all; counts. Raises ValueError where there is no entry, or this Python's SQLite has no FTS5.

    Of two entries with one title the later one is kept, counted in "replaced".
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.unlink(missing_ok=True)
    connection = _connect(str(partial))
    try:
        counts = _fill(connection, entries)
        if not counts["entries"]:
            raise ValueError(
                f"{', '.join(sources)}: no entry in it, so there is nothing to look up; give JSON lines {{title, text, url, licence}}"
            )
        digest = hashlib.sha256()
        for row in connection.execute("select * from entries order by title"):
            digest.update(json.dumps(row[1:], ensure_ascii=False).encode())
        for row in connection.execute(
            "select names.name, kind, title from names join entries on entry = id order by 1, 2, 3"
        ):
            digest.update(json.dumps(row, ensure_ascii=False).encode())
        about = {"form": FORM, "content": digest.hexdigest(), "sources": list(sources)} | counts
        connection.executemany("insert into about values (?, ?)", [(k, json.dumps(v)) for k, v in about.items()])
        connection.commit()
        connection.close()
        os.replace(partial, path)
    finally:
        connection.close()
        partial.unlink(missing_ok=True)
    return about


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, uri=path.startswith("file:"))
    if "ENABLE_FTS5" not in {row[0] for row in connection.execute("pragma compile_options")}:
        connection.close()
        raise ValueError(
            f"the SQLite {sqlite3.sqlite_version} of this Python has no FTS5; use a Python that has (python.org, conda, Debian)"
        )
    return connection


def _fill(connection: sqlite3.Connection, entries: Iterable[Entry]) -> dict[str, int]:
    connection.executescript(_TABLES)
    replaced = 0
    known: dict[str, int] = {}
    for entry in entries:
        if entry.title in known:
            replaced += 1
            for table, column in (("entries", "id"), ("names", "entry"), ("search", "rowid")):
                connection.execute(f"delete from {table} where {column} = ?", (known[entry.title],))
        values = (entry.title, entry.text, entry.url, entry.licence, entry.retrieved)
        number = connection.execute(
            "insert into entries (title, text, url, licence, retrieved) values (?, ?, ?, ?, ?)", values
        ).lastrowid
        assert number is not None
        known[entry.title] = number
        aliases = [*entry.aliases, *filter(None, [without_remark(entry.title)])]
        names = {(normalised(entry.title), "title"), *((normalised(alias), "alias") for alias in aliases)}
        connection.executemany("insert into names values (?, ?, ?)", [(*name, number) for name in sorted(names)])
        search = (number, entry.title, "\n".join(aliases), entry.text)
        connection.execute("insert into search (rowid, title, aliases, text) values (?, ?, ?, ?)", search)
    return {"entries": len(known), "replaced": replaced}


def without_remark(title: str) -> str:
    """ "Crane" of "Crane (machine)"; "" of a title without a remark.

    >>> without_remark("Crane (machine)")
    'Crane'
    """
    name, _, remark = title.partition(" (")
    return name if remark.endswith(")") else ""


def normalised(name: str) -> str:
    """A name without case, hyphens and underscores.

    >>> normalised("Pick-up  Truck")
    'pick up truck'
    """
    return " ".join(re.sub(r"[-_‐-―]+", " ", name.casefold()).split())


def singulars(name: str) -> list[str]:
    """What a normalised name may be the regular plural of, likeliest first.

    >>> singulars("buses"), singulars("traffic cones"), singulars("glass")
    (['buse', 'bus'], ['traffic cone'], [])
    """
    if name.endswith("ies") and len(name) > 4:
        return [f"{name[:-3]}y"]
    if not name.endswith("s") or name.endswith(("ss", "us", "is")):
        return []
    return [name[:-1], *([name[:-2]] if re.search(r"(s|x|z|ch|sh)es$", name) else [])]


# Looking up -------------------------------------------------------------------------------------------------------------------


class Knowledge:
    """A knowledge file. `lookup` asks for each name once.

    Attributes:
        content: hash of all entries and names: what decides a description.
        entries: how many.
    Raises ValueError for a file that is missing, none, or empty.
    """

    def __init__(self, path: str | Path, sentences: int = 2) -> None:
        self.path, self.sentences = Path(path), sentences
        if not self.path.is_file():
            raise ValueError(f"{path}: no such knowledge file. {_WAY_OUT}.")
        # Read only, so that ranks share it and a slip of the hand makes no new file.
        self._file = _connect(f"{self.path.resolve().as_uri()}?mode=ro")
        try:
            about = {name: json.loads(value) for name, value in self._file.execute("select name, value from about")}
            if about.get("form") != FORM or not about.get("entries"):
                raise ValueError(f"form {about.get('form')} with {about.get('entries') or 'no'} entries")
            self.content, self.entries = str(about["content"]), int(about["entries"])
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a knowledge file that can be used ({error}). {_WAY_OUT}.") from error
        self._memo: dict[str, tuple[Description | None, str]] = {}

    def lookup(self, name: str) -> tuple[Description | None, str]:
        """(what the name means, how it was found: "title", "alias", "search"); or (None, why not: "ambiguous", "not_found",
        "no_sentence": the text has years in every sentence)."""
        if name not in self._memo:
            entry, how = self._find(name)
            found = None
            if entry is not None:
                title, text, url, licence = self._file.execute(
                    "select title, text, url, licence from entries where id = ?", (entry,)
                ).fetchone()
                text = sentences_of(text, self.sentences)
                found, how = (Description(title, text, url, licence), how) if text else (None, "no_sentence")
            self._memo[name] = (found, how)
        return self._memo[name]

    def _find(self, name: str) -> tuple[int | None, str]:
        exact = self._file.execute("select id from entries where title = ?", (name.strip(),)).fetchone()
        if exact:
            return exact[0], "title"
        plain = normalised(name)
        for kind in ("title", "alias"):
            for form in (plain, *singulars(plain)):
                query = "select distinct entry from names where name = ? and kind = ?"
                found = [row[0] for row in self._file.execute(query, (form, kind))]
                if found:
                    return (found[0], kind) if len(found) == 1 else (None, "ambiguous")
        for form in (plain, *singulars(plain)):
            if (entry := self._search(form)) is not None:
                return entry, "search"
        return None, "not_found"

    def _search(self, name: str) -> int | None:
        """The best page whose title or aliases hold the whole name, as words in their order."""
        words = re.findall(_WORD, name)
        if len(words) < 2:
            return None
        phrase = f'"{" ".join(words)}"'
        # The first part lets texts take part in the rank, the second demands the name in the title or an alias.
        query = f"{phrase} AND {{title aliases}} : {phrase}"
        ranked = self._file.execute(
            f"select rowid from search where search match ? order by bm25(search, {_WEIGHTS}), rowid limit {_LOOKED_AT}",
            (query,),
        )
        for (entry,) in ranked.fetchall():
            names = self._file.execute("select name from names where entry = ?", (entry,))
            # The index has all aliases of a page in one text: a phrase may begin in one alias and end in the next.
            if any(f" {' '.join(words)} " in f" {' '.join(re.findall(_WORD, found))} " for (found,) in names):
                return entry
        return None


def sentences_of(text: str, most: int) -> str:
    """The first `most` sentences that hold no year and no century.

    >>> sentences_of("A bicycle has two wheels. It was made in the 19th century. Riders sit e.g. upright. They pedal.", 2)
    'A bicycle has two wheels. Riders sit e.g. upright.'
    """
    parts, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[start : end.start()]):
            parts.append(text[start : end.start()])
            start = end.end()
    kept = [part.strip() for part in (*parts, text[start:]) if part.strip() and not _YEAR.search(part)]
    return " ".join(kept[:most])
