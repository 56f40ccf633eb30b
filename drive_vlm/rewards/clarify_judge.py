"""The judge of the reward "clarify": its votes on the replies of a batch, as judges/clarify_verdicts.py asks for them."""

import dataclasses
from collections.abc import Sequence

from drive_vlm.evaluation.clarify_replies import Reading, Verdict, parse_verdict
from drive_vlm.judges.clarify_verdicts import combined, facts
from drive_vlm.judges.judge import Judge, Request, judge_all
from drive_vlm.judges.verdicts import Turns, fill


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the votes say of one reply: None where no more than half of them can be read. `replies` are the judge's words."""

    verdict: Verdict | None
    replies: list[str]


class ClarifyJudge:
    """`votes` verdicts of a judge on each reply, by the prompts in turn: the first greedy, the others sampled."""

    def __init__(self, judge: Judge, prompts: Sequence[Turns], votes: int, attempts: int) -> None:
        self.judge, self._prompts, self._votes, self._attempts = judge, prompts, votes, attempts

    def verdicts(self, readings: Sequence[Reading], images: Sequence[tuple[str, ...]]) -> list[Judged]:
        """In the order of `readings`; `images` are the paths of each one's pictures. Equal requests are made once. Raises ChatError
        where the judge's server does not answer."""
        values = [
            {"question": reading.row.question, "facts": facts(reading.row), "reply": reading.text}
            for reading in readings
        ]
        found: list[list[tuple[Verdict | None, str]]] = [[] for _ in readings]
        for vote in range(self._votes):
            prompt = self._prompts[vote % len(self._prompts)]
            requests = [Request(fill(prompt, own), shown) for own, shown in zip(values, images, strict=True)]
            unique = list(dict.fromkeys(requests))
            blocks = judge_all(self.judge, unique, parse_verdict, self._attempts, vote * self._attempts)
            said = dict(zip(unique, (item for block in blocks for item in block), strict=True))
            for votes, request in zip(found, requests, strict=True):
                votes.append((said[request].value, said[request].reply))
        return [Judged(combined([vote for vote, _ in votes]), [reply for _, reply in votes]) for votes in found]
