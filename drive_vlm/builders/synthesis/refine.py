"""The step refine: a teacher rewrites the raw caption with the names of detector and retrieval and what the descriptions say of them.

Facts may explain an object, never add one. A reply is taken when it is JSON of the form, names among "used_objects" only objects of the
picture, and when its caption names nothing detectable that neither the raw caption nor the objects name. Else the raw caption stays,
and the reason is counted.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.builders.rewrites import clean, fault
from drive_vlm.builders.synthesis.knowledge import normalised, singulars
from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.records import field_of
from drive_vlm.builders.synthesis.scene import description_lines, object_lines, objects_of, size_of
from drive_vlm.builders.synthesis.step import Made
from drive_vlm.builders.synthesis.writers import Outcome, Said, Unread, Wanted, prompt_sha, read_json, reasons_of
from drive_vlm.judges.judge import Request
from drive_vlm.judges.verdicts import fill, read_prompt

FORM = {"caption": str, "used_objects": [str], "dropped_claims": [str]}
# (raw caption, labels of the objects, refined caption) -> what the last names and the others do not.
Added = Callable[[str, Sequence[str], str], list[str]]


def name_of(label: str) -> str:
    """A label for comparison: without case, hyphens and a regular plural.

    >>> name_of("Traffic-Cones")
    'traffic cone'
    """
    plain = normalised(label)
    return next(reversed(singulars(plain)), plain) if plain.endswith("s") else plain


def names_in(text: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that stand in the text as whole words, alone or in a regular plural, sorted.

    >>> names_in("Two traffic cones close the lane.", ["traffic cone", "cone", "one"])
    ['cone', 'traffic cone']
    """
    plain = normalised(text)
    return sorted(
        name
        for name in set(map(name_of, names))
        if name
        and re.search(
            rf"(?<!\w){re.escape(name)}(s|es)?(?!\w)", re.sub(r"ies\b", "y", plain) if name.endswith("y") else plain
        )
    )


def added_names(names: Sequence[str]) -> Added:
    """An Added that knows these names, such as the classes of an open-vocabulary detector and the names of a data base."""

    def added(caption: str, labels: Sequence[str], refined: str) -> list[str]:
        given = names_in(f"{caption}\n" + "\n".join(labels), names)
        return sorted(set(names_in(refined, names)) - set(given))

    return added


class Refinement:
    """The TextStep refine. `added`: checks, each of which finds what a refined caption has added; `words`: least and most of it.

    Raises ValueError for a prompt file that cannot be used.
    """

    name = "refine"
    role = "teacher"
    pixels = False
    fields = ("caption_fine", "used_objects", "dropped_claims", "refused", "prompt_sha")

    def __init__(self, prompts: Path, words: tuple[int, int], added: Sequence[Added], settings: dict[str, Any]) -> None:
        self.words, self.added = words, added
        self.prompt = read_prompt(prompts / "refine.txt", ["caption", "objects", "descriptions"])
        self.sha = prompt_sha(self.prompt, FORM)
        self.settings: dict[str, Any] = {"prompt_sha": self.sha, "words": list(words)} | settings

    def wanted(self, picture: Picture) -> dict[str, Wanted]:
        """Nothing for a picture without a caption."""
        line, where = picture.line, picture.where
        caption = field_of(line, "caption_raw", where)
        objects = objects_of(line, where)
        if not caption:
            return {}
        values = {
            "caption": caption,
            "objects": object_lines(objects, *size_of(picture, line)),
            "descriptions": description_lines(line, where),
        }
        labels = sorted({found.label for found in objects})
        return {
            "refine": Wanted(Request(fill(self.prompt, values)), lambda said: self.read(said, caption, labels), FORM)
        }

    def read(self, said: Said, caption: str, labels: Sequence[str]) -> dict[str, Any]:
        """The fields of a line. Raises Unread: what read_json and rewrites.fault say, unknown_object, added_object."""
        reply = read_json(said, FORM)
        text = clean(reply["caption"])
        if problem := fault(text, said.ending, *self.words):
            raise Unread(problem)
        known = {name_of(label): label for label in labels}
        if unknown := [name for name in reply["used_objects"] if name_of(name) not in known]:
            raise Unread(f"unknown_object: {unknown[0]}")
        for check in self.added:
            if new := check(caption, labels, text):
                raise Unread(f"added_object: {', '.join(new)}")
        used = sorted({known[name_of(name)] for name in reply["used_objects"]})
        return {"caption_fine": text, "used_objects": used, "dropped_claims": reply["dropped_claims"]}

    def made(self, picture: Picture, found: dict[str, Outcome]) -> Made:
        if "refine" not in found:
            return Made({"refused": "no_caption", "prompt_sha": self.sha}, {"no_caption": 1})
        outcome = found["refine"]
        fields = outcome.value if outcome.value is not None else {"refused": outcome.reasons[-1]}
        return Made(fields | {"prompt_sha": self.sha}, dict(reasons_of(found)))

    def counts(self, line: dict[str, Any]) -> dict[str, int]:
        taken = "caption_fine" in line
        return {
            "refined": int(taken),
            "raw caption stays": int(not taken),
            "used objects": len(line.get("used_objects", ())),
            "dropped claims": len(line.get("dropped_claims", ())),
        }

    def shown(self, line: dict[str, Any]) -> str:
        if "caption_fine" not in line:
            return f"(raw caption stays: {line['refused']}) {line['caption_raw']}"
        dropped = "; ".join(line["dropped_claims"]) or "nothing"
        return f"{line['caption_fine']}\n    before: {line['caption_raw']}\n    dropped: {dropped}"
