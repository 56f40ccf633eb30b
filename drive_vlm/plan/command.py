"""The plan of a run: configuration with origins, batch equation, parameters, memory for every ZeRO stage, time and disk.

Reads config.json (or a shipped architecture) only: no weights, no GPU, no hub. Every flag of the planned command is accepted.
"""

import json
from collections.abc import Sequence

from drive_vlm.config import CommandParser, nearest, plain, user_errors
from drive_vlm.plan.make import EXAMPLES, STAGES, make_plan


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm plan STAGE flags...`."""
    stage = words[0] if words else "--help"
    if stage in ("-h", "--help"):
        parser = CommandParser(prog="python -m drive_vlm plan", description=__doc__, examples=EXAMPLES)
        parser.add_argument(
            "stage", choices=(*STAGES, "systems"), help="command to plan, or the table of published systems"
        )
        parser.parse_args(["--help"])
    if stage == "systems":
        from drive_vlm.plan.systems import show_systems

        show_systems(words[1:])
        return
    with user_errors(f"python -m drive_vlm plan {stage}"):
        if stage not in STAGES:
            raise ValueError(
                f"{stage} cannot be planned (known: {', '.join(STAGES)}, systems).{nearest(stage, STAGES)}"
            )
        plan = make_plan(stage, words[1:])
    if plan.pop("as_json"):
        print(json.dumps(plain(plan), indent=2))
        return
    from drive_vlm.plan.tables import show

    show(plan)
