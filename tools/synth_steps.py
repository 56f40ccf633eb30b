"""What the commands of the synthesis steps print: a part of tools/synth_*.py."""

from typing import Any

from drive_vlm.report.tables import print_table


def show_step(audit: dict[str, Any], args: Any) -> None:
    """Print the audit of a step: what `show` of its tool is."""
    rows = [("pictures", audit["pictures"]), ("lines", audit["lines"]), *audit["counts"].items()]
    if "made" in audit:
        rows.insert(2, ("made now", audit["made"]))
    rows += [(f"dropped: {reason}", count) for reason, count in audit["dropped"].items()]
    rows += [(f"bad: {reason}", count) for reason, count in audit["bad_rows"]["by_reason"].items()]
    rows += [(f"tokens: {kind}", count) for kind, count in audit["tokens"].items()]
    print_table(None, (audit["step"], "count"), [(name, f"{count:,}") for name, count in rows])
    for row in audit["bad_rows"]["rows"][:10]:
        print(f"  {row['where']}: {row['reason']}: {row['problem']}")
    cost = f", {audit['cost']:.4f} US dollars" if audit["cost"] else ""
    print(f"wrote {args.out}{cost}")
