"""The plan of a run: configuration with origins, batch equation, parameters, memory for every ZeRO stage, time and disk.

Reads a config.json, or what ships of a published model: no weights, no GPU, no hub. Every flag of the planned command is accepted.
"""

import json
from collections.abc import Sequence

from drive_vlm.config import CommandParser, nearest, plain, user_errors
from drive_vlm.plan.make import EXAMPLES, make_plan
from drive_vlm.stages import STAGES


def main(words: Sequence[str]) -> None:
    """`python -m drive_vlm plan STAGE flags...`."""
    stage = words[0] if words else "--help"
    if stage in ("-h", "--help"):
        parser = CommandParser(prog="python -m drive_vlm plan", description=__doc__, examples=EXAMPLES)
        parser.add_argument(
            "stage",
            choices=(*STAGES, "systems", "record"),
            help="command to plan; or the table of published systems; or write what ships of them again, from their classes",
        )
        parser.parse_args(["--help"])
    if stage == "systems":
        from drive_vlm.plan.systems import show_systems

        show_systems(words[1:])
        return
    if stage == "record":
        text = "Count again all models that ship, and the flags of the training classes. It writes into the package."
        CommandParser(prog="python -m drive_vlm plan record", description=text).parse_args(list(words[1:]))
        from drive_vlm.plan.record import record_everything

        print("\n".join(map(str, record_everything())) or "nothing has changed")
        return
    with user_errors(f"python -m drive_vlm plan {stage}"):
        if stage not in STAGES:
            raise ValueError(
                f"{stage} cannot be planned (known: {', '.join(STAGES)}, systems, record).{nearest(stage, STAGES)}"
            )
        plan = make_plan(stage, words[1:])
    if plan.pop("as_json"):
        print(json.dumps(plain(plan), indent=2))
        return
    from drive_vlm.plan.tables import show

    show(plan)
