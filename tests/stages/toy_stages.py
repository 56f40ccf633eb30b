"""The stages of the tests. `python tests/stages/toy_stages.py NAME ...` is python -m drive_vlm with them in its table."""

from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.stage import Stage

TOYS = {
    "short_answers": Stage(
        prepare="short_answers:prepare", help="a stage of the tests", kind="rows", check="short_answers:check"
    ),
    "length_head": Stage(prepare="length_head:prepare", help="a stage of the tests", kind="rows"),
}

if __name__ == "__main__":
    from drive_vlm.__main__ import main

    STAGES.update(TOYS)
    main()
