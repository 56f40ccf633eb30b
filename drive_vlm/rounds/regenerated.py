"""The training rows of a round whose captions and answers its own model wrote: their mix with human rows, and what to watch.

Every round has the same share of human rows: a model that learns from its own texts alone drifts away from the world (model
collapse; Shumailov et al. 2024, Gerstgrasser et al. 2024). The measures say whether it does: fewer different words, longer or
shorter answers, more objects that nothing has seen, rows that no longer change.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from drive_vlm.builders.splits import split_position
from drive_vlm.data.samples import Sample
from drive_vlm.data.sources import Source, open_sources
from drive_vlm.data.table import read_sample
from drive_vlm.evaluation.statistics import summarize
from drive_vlm.evaluation.text_overlap import tokenize
from drive_vlm.rounds.chain import Chain
from drive_vlm.store.cache import write_json
from drive_vlm.store.fingerprint import model_fingerprint
from drive_vlm.store.keyed_lines import write_lines

Row = dict[str, Any]


def share_of(human: Sequence[str], synthetic: Sequence[str], share: float) -> tuple[set[str], set[str]]:
    """The ids to take of both sides, so that `share` of all is human: all of one side, as many as fit of the other.

    What is taken of a side follows the hash of the id, so that the next round takes the same rows where it can.
    Raises ValueError for a share outside 0..1, and where a side that is asked for is empty.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a human share of {share:g}: 0 to 1 is meant, e.g. 0.3")
    for name, ids, wanted in (("human", human, share > 0), ("synthetic", synthetic, share < 1)):
        if wanted and not ids:
            raise ValueError(f"a human share of {share:g} needs {name} rows, and there are none")
    if share in (0, 1):
        return (set(human), set()) if share else (set(), set(synthetic))
    # Rounded down: the other side would be too small for one more.
    most_human = int(len(synthetic) * share / (1 - share) + 1e-9)
    most_synthetic = int(len(human) * (1 - share) / share + 1e-9)
    if not min(most_human, len(human)) or not min(most_synthetic, len(synthetic)):
        raise ValueError(
            f"{len(human):,} human and {len(synthetic):,} synthetic rows cannot be mixed with a human share of {share:g}: "
            "less than one row of a side would be left. Make more rows, or change the share"
        )
    return _first(human, most_human), _first(synthetic, most_synthetic)


def _first(ids: Sequence[str], count: int) -> set[str]:
    return set(sorted(ids, key=lambda name: (split_position(name), name))[:count])


def mixed(human: Sequence[Row], synthetic: Sequence[Row], share: float) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a round, human ones first, each side in its order, and {"rows", "human", "synthetic", "human_share", "left_out"}.

    Raises ValueError as `share_of`, and for an id that comes twice.
    """
    seen = Counter(str(row.get("id")) for row in (*human, *synthetic))
    if twice := [name for name, count in seen.items() if count > 1]:
        raise ValueError(
            f"{len(twice):,} ids stand twice in the human and synthetic rows, e.g. {twice[0]!r}; make ids unique"
        )
    taken = share_of(*([str(row["id"]) for row in rows] for rows in (human, synthetic)), share)
    parts = [
        [row for row in rows if str(row["id"]) in ids] for rows, ids in zip((human, synthetic), taken, strict=True)
    ]
    counts, total = [len(part) for part in parts], sum(map(len, parts))
    left_out = {"human": len(human) - counts[0], "synthetic": len(synthetic) - counts[1]}
    facts = {"rows": total, "human": counts[0], "synthetic": counts[1], "human_share": counts[0] / total}
    return [*parts[0], *parts[1]], {**facts, "left_out": left_out}


def write_round(chain: Chain, number: int, model: str, human: Sequence[Row], source: Source) -> dict[str, Any]:
    """Write round-`number`/rows.jsonl: `human` rows and those of `source`, which `model` wrote; returns what its audit holds.

    The audit measures all rows of `source`, next to those of the round before. Raises ValueError as `mixed`, and for a chain that
    regenerates nothing.
    """
    if not chain.settings.get("regenerate"):
        raise ValueError(f"{chain.path}: this chain was started without --synth: its rounds write no rows again")
    folder = chain.folder(str(number))
    synthetic = [source.row(i) for i in range(len(source.rows))]
    rows, counts = mixed(human, synthetic, chain.settings["human_share"])
    now = [read_sample(source, i) for i in range(len(source.rows))]
    kept = chain.folder(str(number - 1)) / "regenerated.jsonl"
    before = None
    if number > 1:
        (earlier,) = open_sources([str(kept)], source.root)
        before = [read_sample(earlier, i) for i in range(len(earlier.rows))]
    audit = {**counts, "model": model_fingerprint(model), "measures": measures(now, before, objects_invented)}
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "regenerated.jsonl", synthetic)
    # The audit first: rows without one would look like a finished step.
    write_json(folder / "rows.jsonl.audit.json", audit)
    write_lines(folder / "rows.jsonl", rows)
    return audit


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams over all n-grams of the texts (distinct-n; Li et al. 2016); None where there are none."""
    found: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = tokenize(text)
        found.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(found) / found.total() if found else None


def changed(before: Sequence[Sample] | None, now: Sequence[Sample]) -> dict[str, Any] | None:
    """{"rows", "new_question", "new_answer", "share"} of the rows of `now` next to those of the round before, by pictures and
    question; None where there is no round before. `share` counts both kinds."""
    if before is None or not now:
        return None
    known: dict[Any, set[str]] = {}
    for sample in before:
        known.setdefault(_asked(sample), set()).add(sample.reference.strip())
    new_question = sum(_asked(sample) not in known for sample in now)
    new_answer = sum(
        _asked(sample) in known and sample.reference.strip() not in known[_asked(sample)] for sample in now
    )
    share = (new_question + new_answer) / len(now)
    return {"rows": len(now), "new_question": new_question, "new_answer": new_answer, "share": share}


def _asked(sample: Sample) -> tuple[Any, ...]:
    return (*sample.images, *(turn.text.strip() for turn in sample.turns if turn.role == "user"))


def hallucinated(
    samples: Sequence[Sample], invented: Callable[[Sample], Sequence[str] | None], seed: int = 0
) -> dict[str, Any]:
    """How many texts name an object that nothing has seen: {"rate", "low", "high", "rows", "objects"}, the interval by group.

    `invented(sample)`: the detectable objects that its answer names and its sources lack; None where the answer names no
    detectable object, which is counted in "rows_without_objects" and is no part of the rate.
    """
    found = [(sample, invented(sample)) for sample in samples]
    named = [(sample, names) for sample, names in found if names is not None]
    words = Counter(name for _, names in named for name in names)
    rest = {"rows": len(named), "rows_without_objects": len(found) - len(named), "objects": dict(words.most_common(20))}
    if not named:
        return {"rate": None, "low": None, "high": None, **rest}
    groups = [str(sample.group or " ".join(sample.images) or sample.id) for sample, _ in named]
    result = summarize([float(bool(names)) for _, names in named], groups, seed).to_dict()
    return {"rate": result["mean"], "low": result["low"], "high": result["high"], **rest}


def measures(
    samples: Sequence[Sample],
    before: Sequence[Sample] | None,
    invented: Callable[[Sample], Sequence[str] | None],
) -> dict[str, Any]:
    """What a round's own rows look like: different words, length, invented objects, what changed since the round before."""
    answers = [sample.reference for sample in samples]
    lengths = [len(tokenize(answer)) for answer in answers]
    return {
        "rows": len(samples),
        **{f"distinct_{n}": distinct(answers, n) for n in (1, 2)},
        "mean_words": sum(lengths) / len(lengths) if lengths else None,
        "hallucinated": hallucinated(samples, invented),
        "changed": changed(before, samples),
    }
