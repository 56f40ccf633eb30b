"""The step caption: a vision-language model describes the picture; what the detector and retrieval have named may stand in the prompt."""

from pathlib import Path
from typing import Any

from drive_vlm.builders.rewrites import clean, fault
from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.scene import object_lines, objects_of, size_of
from drive_vlm.builders.synthesis.step import Made
from drive_vlm.builders.synthesis.writers import Outcome, Said, Unread, Wanted, prompt_sha, reasons_of
from drive_vlm.judges.judge import Request
from drive_vlm.judges.verdicts import fill, read_prompt


class Captions:
    """The TextStep caption. `words`: the least and the most of a caption; `with_objects`: whether the prompt lists the objects.

    Raises ValueError for a prompt file that cannot be used.
    """

    name = "caption"
    role = "captioner"
    pixels = True
    fields = ("caption_raw", "finish_reason", "model", "refused", "prompt_sha")

    def __init__(self, model: str, prompts: Path, words: tuple[int, int], with_objects: bool) -> None:
        self.model, self.words, self.with_objects = model, words, with_objects
        file, places = ("caption_objects.txt", ["objects"]) if with_objects else ("caption.txt", [])
        self.prompt = read_prompt(prompts / file, places)
        self.sha = prompt_sha(self.prompt)
        self.settings: dict[str, Any] = {"prompt_sha": self.sha, "words": list(words), "with_objects": with_objects}

    def wanted(self, picture: Picture) -> dict[str, Wanted]:
        turns = self.prompt
        if self.with_objects:
            line = picture.line
            objects = objects_of(line, picture.where)
            turns = fill(turns, {"objects": object_lines(objects, *size_of(picture, line))})
        return {"caption": Wanted(Request(turns, (picture.path,)), self.read)}

    def read(self, said: Said) -> str:
        """Raises Unread: no_answer, or what rewrites.fault says."""
        if said.ending == "refused":
            raise Unread("no_answer")
        text = clean(said.text)
        if problem := fault(text, said.ending, *self.words):
            raise Unread(problem)
        return text

    def made(self, picture: Picture, found: dict[str, Outcome]) -> Made:
        """A caption that no attempt gave is "", with the last reason in "refused"."""
        outcome = found["caption"]
        fields = {
            "caption_raw": outcome.value or "",
            "finish_reason": outcome.ending,
            "model": self.model,
            "prompt_sha": self.sha,
        }
        if outcome.value is None:
            fields["refused"] = outcome.reasons[-1]
        return Made(fields, dict(reasons_of(found)))

    def counts(self, line: dict[str, Any]) -> dict[str, int]:
        words = len(line["caption_raw"].split())
        return {"captions": int(words > 0), "without a caption": int(words == 0), "words": words}

    def shown(self, line: dict[str, Any]) -> str:
        return line["caption_raw"] or f"(no caption: {line['refused']})"
