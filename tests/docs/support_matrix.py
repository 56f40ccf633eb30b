"""docs/support.md from the marks of the tests: python tests/docs/support_matrix.py [--write]

A test says what it shows:  @pytest.mark.supports("internvl sft zero2 lora", "internvl sft zero3")
Words of one text: a family of MODELS (or * for every family), a stage, any of LAYOUTS and FEATURES, and at the end perhaps
refused (the combination stops with words) or optional (the test is skipped where a package or the kit is missing).
The marks are read from the source: nothing is imported from the tests and nothing runs. Without --write the page is printed.
"""

import ast
import dataclasses
import sys
from collections.abc import Iterator

from pages import ROOT

from drive_vlm import stages
from drive_vlm.models import MODELS

PAGE = ROOT / "docs" / "support.md"
STAGES = (*stages.STAGES, "generate")
LAYOUTS = {
    "ddp": "ranks without DeepSpeed",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "offload": "offload",
}
FEATURES = {"packing": "packing", "lora": "LoRA", "features": "feature cache", "nf4": "NF4"}
TRAINING = {"zero1", "zero2", "zero3", "offload", "packing"}  # of no meaning for generate
OUTCOMES = ("tested", "optional", "refused")  # the strongest first
HEAD = """# What works together

Made from the marks of the tests by `python tests/docs/support_matrix.py --write`; a test checks that this page is up to date.
All tests run on CPU, with tiny random models of the real classes.

| word | meaning |
|---|---|
| tested | a test trains or answers with this and checks the result |
| refused | the combination stops with words, and a test checks them |
| optional | a test exists, and is skipped where a package or the real models are missing; the usual CI does not run it |
| untested | no test says anything; it may work |

A cell speaks of at least one test with this family, stage and column. Which columns were tested together is listed below the tables.
Not in the tables, since nothing was run: GPUs, NCCL, flash and flex attention, NF4 on CUDA, and any model at its full size.
"""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One text of one mark; `traits` are words of LAYOUTS and FEATURES."""

    family: str
    stage: str
    traits: tuple[str, ...]
    outcome: str
    test: str


def parse(text: str, test: str) -> Claim:
    """Raises ValueError, naming the test, for a word that is not known or stands in the wrong place."""
    words = text.split()
    outcome = words.pop() if words[-1:] and words[-1] in OUTCOMES[1:] else "tested"
    family, stage, *traits = [*words, "", ""][: max(2, len(words))]
    known = [*LAYOUTS, *FEATURES]
    if family not in (*MODELS, "*") or stage not in STAGES or not set(traits) <= set(known):
        raise ValueError(f"{test}: {text!r} is not FAMILY STAGE [{' '.join(known)}] [refused | optional]")
    return Claim(family, stage, tuple(sorted(traits, key=known.index)), outcome, test)


def claims() -> Iterator[Claim]:
    """Every mark of every test file, in the order of the files."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text()
        if "mark.supports(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.supports":
                    test = f"{path.relative_to(ROOT)}::{node.name}"  # type: ignore[attr-defined]
                    if not mark.args or not all(isinstance(arg, ast.Constant) for arg in mark.args):
                        raise ValueError(f"{test}: supports() takes texts, written out")
                    yield from (parse(str(ast.literal_eval(arg)), test) for arg in mark.args)


def _cell(found: list[Claim], family: str, column: str) -> str:
    """The strongest statement about `family` with `column`: "one" is a claim without a layout."""
    own = [claim for claim in found if claim.family in (family, "*")]
    if column == "one":
        # With * only a refusal of something is meant, which says nothing about one process.
        fits = [claim for claim in own if not set(claim.traits) & set(LAYOUTS) and claim.family != "*"]
        fits = [claim for claim in fits if claim.outcome != "refused"]
    else:
        fits = [claim for claim in own if column in claim.traits]
        # What is refused together with something else is no statement about the column alone.
        fits = [claim for claim in fits if claim.outcome != "refused" or set(claim.traits) == {column}]
    return next((outcome for outcome in OUTCOMES if any(claim.outcome == outcome for claim in fits)), "untested")


def page() -> str:
    """The text of docs/support.md."""
    found = sorted(set(claims()), key=lambda claim: (STAGES.index(claim.stage), dataclasses.astuple(claim)))
    every = {"one": "one process"} | LAYOUTS | FEATURES
    parts = [HEAD]
    for stage in STAGES:
        here = [claim for claim in found if claim.stage == stage]
        columns = {word: name for word, name in every.items() if stage != "generate" or word not in TRAINING}
        parts.append(f"## {stage}\n\n| family | {' | '.join(columns.values())} |\n|{'---|' * (len(columns) + 1)}\n")
        rows = ("".join(f" {_cell(here, family, column)} |" for column in columns) for family in MODELS)
        parts[-1] += "".join(f"| {family} |{row}\n" for family, row in zip(MODELS, rows, strict=True))
    parts.append("## Tested together\n\n| stage | family | with | says | tests |\n|---|---|---|---|---|\n")
    tests: dict[tuple[str, str, str, str], list[str]] = {}
    for claim in found:
        names = ", ".join((LAYOUTS | FEATURES)[word] for word in claim.traits) or "one process"
        family = "every family" if claim.family == "*" else claim.family
        tests.setdefault((claim.stage, family, names, claim.outcome), []).append(claim.test)
    for key, names in tests.items():
        shown = ", ".join(f"`{name}`" for name in sorted(names))
        parts[-1] += f"| {' | '.join(key)} | {shown} |\n"
    return "\n".join(parts)


def main() -> None:
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
