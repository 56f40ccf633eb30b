"""python -m drive_vlm report: what it refuses, what it says, and that nothing is invented where something is missing."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

BLOCKS = ("verdict", "ran", "curves", "data", "scores", "confusion", "compare", "rows", "judges", "faults", "reproduce")
Report = Callable[..., tuple[int, str, str]]


def text_of(page: Path) -> str:
    """The words of a page, without its style and script."""
    text = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_a_run_alone_has_every_block_and_says_what_it_lacks(report: Report, made_run: Callable, tmp_path: Path) -> None:
    code, said, _ = report(made_run())
    assert code == 0 and "no verdict" in said
    page = (tmp_path / "report.html").read_text()
    assert all(f'id="{block}"' in page for block in BLOCKS)
    words = text_of(tmp_path / "report.html")
    for absent in (
        "No verdict: no evaluation is in this report",
        "No data_audit.json in this report",
        "Not looked for: that takes prediction files and training rows",
        "No evaluation in this report.",
        "No rows: no prediction files in this report",
        "No judge and no second rater",
        "No time line",
        "status.json, data_audit.json, tensorboard/",
    ):
        assert absent in words, absent
    assert "4 on 2 nodes by torchrun, ZeRO-2" in words and "2 x NVIDIA H100" in words
    # 3,000 s of training on four GPUs.
    assert "GPU-hours 3.33" in words and "goodput not known" in words
    assert "0123456789ab and 1 changed files" in words and "--data &#39;my rows.jsonl&#39;" in page


def test_a_page_without_a_run_or_a_metric_invents_no_number(report: Report, made_run: Callable, tmp_path: Path) -> None:
    run = made_run(metrics=[])
    for name in ("ended", "state", "steps", "metrics", "topology", "machine", "git", "config"):
        content = json.loads((run / "run.json").read_text())
        content.pop(name)
        (run / "run.json").write_text(json.dumps(content))
    (run / "metrics.jsonl").unlink()
    assert report(run)[0] == 0
    words = text_of(tmp_path / "report.html")
    assert "No curve: there is no metrics.jsonl" in words
    for name in ("state", "steps", "processes", "device", "ended", "time", "GPU-hours", "goodput", "git"):
        assert f"{name} not known" in words, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to report: give a run directory, --predictions or --scores"),
        (("{tmp}/nowhere",), "no such folder; give the --output_dir of a run"),
        (("{tmp}",), "neither run.json nor metrics.jsonl is in it"),
        (("{run}", "{run}"), "a run is given twice"),
        (("--predictions", "{tmp}/none.jsonl"), "no such data file"),
        (("--predictions", "{rows}", "--by", "fog"), "--by fog: no row of a has this column"),
        (("--predictions", "{rows}", "--row_scores", "x.csv"), "give both or neither"),
        (("{run}", "--by", "weather"), "--by says something of --predictions"),
        (("--predictions", "{rows}", "--image_root", "{tmp}/none"), "no such folder"),
        (("--predictions", "{rows}", "--lower_is_better"), "--lower_is_better says something of --row_score"),
        (("--scores", "{rows}"), "Give a file that an evaluator wrote with --json"),
        (("--predictions", "{rows}", "--train", "{tmp}/none.jsonl"), "no such data file"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    report: Report, made_run: Callable, made_rows: Callable, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    places = {"tmp": tmp_path, "run": made_run(), "rows": made_rows("a.jsonl", ["yes", "no"])}
    code, _, error = report(*(word.format(**places) for word in words))
    assert code == 2 and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_file_of_a_run_is_named_with_the_way_out(report: Report, made_run: Callable) -> None:
    run = made_run()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\nnot json\n')
    code, _, error = report(run)
    assert code == 2 and "metrics.jsonl:2" in error and "Restore the file or remove it" in error


def test_flags_that_differ_between_runs_stand_side_by_side(report: Report, made_run: Callable, tmp_path: Path) -> None:
    """Those that both have or that a command names; a flag of one stage that nobody gave is left out."""
    common = {"seed": 42, "output_dir": "x"}
    first = {"model": {"model": "m"}, "training": {"learning_rate": 1e-4, "beta": 0.1, "epsilon": 0.2, **common}}
    second = {"model": {"model": "m"}, "training": {"learning_rate": 2e-4, **common, "output_dir": "y"}}
    runs = [
        made_run("r0", config=first, words=["dpo", "--beta=0.1", "--seed", "42"]),
        made_run("r1", config=second, words=["sft"]),
    ]
    assert report(*runs)[0] == 0
    words = text_of(tmp_path / "report.html")
    assert "Flags that differ flag r0 r1 --learning_rate 0.0001 0.0002 --beta 0.1 - r0: versions" in words
    assert report(runs[0])[0] == 0 and "Flags that differ" not in text_of(tmp_path / "report.html")


def test_the_line_of_a_killed_writer_is_passed_over(report: Report, made_run: Callable, tmp_path: Path) -> None:
    run = made_run()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "lo')
    assert report(run)[0] == 0
    assert "loss: 0.1 at step 20" in text_of(tmp_path / "report.html")


def test_the_same_inputs_give_the_same_bytes(
    report: Report, made_run: Callable, made_rows: Callable, tmp_path: Path
) -> None:
    words = (made_run(), "--predictions", made_rows("a.jsonl", ["yes", "no", "no"]), "--out", tmp_path / "report.html")
    pages = [(report(*words), (tmp_path / "report.html").read_bytes())[1] for _ in range(2)]
    assert pages[0] == pages[1]


def test_scores_counts_and_the_verdict_of_rows(report: Report, made_rows: Callable, tmp_path: Path) -> None:
    """Eight rows of four scenes: six right now, two before; blank pictures and the training rows get four."""
    before = made_rows("before.jsonl", ["yes", "yes"] + ["no", "yes"] * 2 + ["yes", "yes"])
    after = made_rows("after.jsonl", ["yes", "no"] * 3 + ["no", "yes"], weather=["rain", "clear"] * 4)
    blind = made_rows("blind.jsonl", ["yes"] * 8)
    rows = [
        {"id": str(i), "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": answer}]}
        for i, answer in enumerate(["yes", "yes", "no"])
    ]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said, error = report("--predictions", before, after, "--blind_predictions", blind, "--train", train)
    assert code == 0, error
    # Four scenes decide nothing, however far apart.
    assert said.startswith("unsure: answer accuracy") and "4 groups are too few" in said
    words = text_of(tmp_path / "report.html")
    assert "75.0% [" in words and "8 rows in 4 groups" in words
    assert re.search(r"the start \(before\) 25\.0% \+50\.0 points", words)
    assert re.search(r"blind pictures 50\.0% \+25\.0 points", words)
    assert re.search(r"majority answer 50\.0% \+25\.0 points", words)
    # Right before on rows 0 and 6, now on rows 0 to 5: five won, one lost.
    assert re.search(r"after - before \+50\.0 points \[.*?\] 5 2 1 8 p = 0\.2188", words)
    assert "by weather" in words and "yes 66.7 %" in words and "never ask" not in words
    assert "share no group" in words and "None found." in words


def test_a_baseline_that_wins_is_red(report: Report, made_rows: Callable, tmp_path: Path) -> None:
    answers = made_rows("a.jsonl", ["yes"] * 6)
    code, said, _ = report("--predictions", answers, "--blind_predictions", made_rows("b.jsonl", ["yes", "no"] * 3))
    assert code == 0 and said.startswith("bad: ") and "not above blind pictures" in said
    assert 'class="verdict bad"' in (tmp_path / "report.html").read_text()
    # As good as without a picture is not above it.
    code, said, _ = report("--predictions", answers, "--blind_predictions", answers.rename(tmp_path / "c.jsonl"))
    assert code == 2
    code, said, _ = report("--predictions", tmp_path / "c.jsonl", "--blind_predictions", tmp_path / "c.jsonl")
    assert said.startswith("bad: ")


def test_shared_scenes_and_pictures_are_a_leak(report: Report, made_rows: Callable, tmp_path: Path) -> None:
    answers = made_rows("a.jsonl", ["yes", "no", "yes", "no"])
    (tmp_path / "copy.png").write_bytes((tmp_path / "p" / "3.png").read_bytes())
    turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "yes"}]
    rows = [{"id": "1", "image": "p/0.png", "group": "scene0", "conversations": turns}]
    rows.append({"id": "2", "image": "copy.png", "group": "other", "conversations": turns})
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report("--predictions", answers, "--train", train)[0] == 0
    words = text_of(tmp_path / "report.html")
    assert "Training and scored rows share 1 groups and 2 pictures." in words
    assert "group scene0" in words and "picture p/0.png" in words and "picture p/3.png" in words


def test_scores_of_an_evaluator_take_the_place_of_exact_match(
    report: Report, made_rows: Callable, tmp_path: Path
) -> None:
    files = [made_rows(name, ["left", "right", "left", "right"]) for name in ("x.jsonl", "y.jsonl")]
    lines = ["id,dataset,checkpoint,ADE"]
    lines += [
        f"r{i},set,{name},{error}"
        for name, errors in (("x", (4, 4, 4, 4)), ("y", (1, 2, 1, 6)))
        for i, error in enumerate(errors)
    ]
    table = tmp_path / "scores.csv"
    table.write_text("\n".join(lines) + "\n")
    words = ("--predictions", *files, "--row_scores", table, "--row_score", "ADE")
    assert report(*words)[1].startswith("bad: ADE of scores.csv")
    code, said, _ = report(*words, "--lower_is_better")
    assert code == 0 and said.startswith("unsure: ADE of scores.csv, lower is better"), said
    shown = text_of(tmp_path / "report.html")
    assert "2.500 [" in shown and "the start (x) 4.000 +1.500" in shown and "the scores are not right or wrong" in shown
    # Worst first: the row with the largest error.
    assert re.search(r'<article id="row-3"', (tmp_path / "report.html").read_text())
    assert (tmp_path / "report.html").read_text().index('id="row-3"') < (tmp_path / "report.html").read_text().index(
        'id="row-0"'
    )
    table.write_text("\n".join(line for line in lines if not line.startswith("r2,set,y")) + "\n")
    code, said, _ = report(*words)
    # The row that one of the two lacks is left out of both, and that is said.
    assert code == 0 and "partial: 1 of 4 rows have no score and are left out: y 3.000" in said
    table.write_text(lines[0] + "\nr9,set,x,1\n")
    code, _, error = report(*words)
    assert code == 2 and "no row of --predictions has a score" in error
    table.write_text("\n".join(lines).replace("y,6", "y,six") + "\n")
    assert "'six' is no number" in report(*words)[2]


def test_points_that_are_compared_letter_by_letter_give_no_verdict(
    report: Report, made_rows: Callable, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in made_rows("a.jsonl", ["PT = [(1, 2), (3, 4)]"] * 3).read_text().splitlines()]
    path = tmp_path / "b.jsonl"
    path.write_text("".join(json.dumps(row | {"reference": "[[1, 2], [3, 5]]"}) + "\n" for row in rows))
    code, said, _ = report("--predictions", path)
    assert code == 0 and "no verdict" in said
    page = (tmp_path / "report.html").read_text()
    assert "No verdict from these." in page and page.count('class="bird"') == 3
    assert page.count('class="track answer"') == page.count('class="track said"') == 3


def test_a_full_page_leaves_pictures_out_and_says_so(
    report: Report, made_rows: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drive_vlm.report.run_report import page

    answers = made_rows("a.jsonl", ["yes", "no"] * 4)
    monkeypatch.setattr(page, "_PICTURES", 2_000)
    code, said, _ = report("--predictions", answers)
    assert code == 0 and re.search(r"8 of 8 rows, [1-4] pictures, [4-7] not shown", said), said
    assert re.search(r"[4-7] pictures had no room", text_of(tmp_path / "report.html"))
    monkeypatch.setattr(page, "LARGEST", 10_000)
    code, _, error = report("--predictions", answers)
    assert code == 2 and "more than 10,000" in error
