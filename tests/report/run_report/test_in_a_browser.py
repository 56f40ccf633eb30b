"""The page in a real browser: it loads without a word on the console, filters and sorts, prints, and runs nothing that data brings."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from chromium_pipe import Browser
from written import write_events, write_lines

BLOCKS = ["verdict", "ran", "curves", "data", "scores", "confusion", "compare", "rows", "judges", "faults", "reproduce"]
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "javascript:window.hacked=1",
    "</script><script>window.hacked = 1</script>",
    "'-window.hacked=1-'",
    "</style></title></svg><svg onload=window.hacked=1>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
)


@pytest.fixture
def page(report: Callable, made_run: Callable, made_rows: Callable, tmp_path: Path) -> Path:
    """Twelve rows of two kinds in two files, a run with curves and a time line, scores with a judge."""
    run = made_run(started="2026-01-02T10:00:00+0000", ended="2026-01-02T10:01:00+0000")
    write_events(run / "tensorboard", 1767348005.0, {10: 1767348030.0, 20: 1767348055.0})
    kinds = {"template": ["light", "light", "sign", "sign"] * 3}
    before = made_rows("before.jsonl", ["no"] * 12, **kinds)
    after = made_rows("after.jsonl", ["yes", "no", "no", "no"] * 3, **kinds)
    scores = tmp_path / "scores.json"
    scores.write_text(
        json.dumps(
            {
                "checkpoints": {"after": {"scores": {"youden_J": {"value": 0.4, "low": 0.3, "high": 0.5}}}},
                "judge": {"cost": 1.5},
            }
        )
    )
    code, _, error = report(run, "--predictions", before, after, "--scores", scores)
    assert code == 0, error
    return tmp_path / "report.html"


def shown(browser: Browser) -> list[str]:
    """Ids of the rows that can be seen, in their order."""
    return browser.js(
        "[...document.querySelectorAll('.example')].filter((e) => e.offsetParent).map((e) => e.dataset.id)"
    )


def choose(browser: Browser, control: str, value: str) -> list[str]:
    browser.js(
        f"(() => {{ const e = document.getElementById('{control}'); e.value = {value!r};"
        " for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )
    return shown(browser)


def test_it_loads_filters_and_sorts(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.js("[...document.querySelectorAll('section')].map((e) => e.id)") == BLOCKS
    assert browser.js("document.querySelectorAll('.chart svg').length") == 3
    assert browser.js("[...document.querySelectorAll('nav a')].every((a) => document.querySelector(a.hash))")
    every = shown(browser)
    assert len(every) == 12
    # Of `after` the rows 2, 6 and 10 are wrong; 0, 4 and 8 are newly right.
    assert sorted(choose(browser, "kind", "worst")) == ["r10", "r2", "r6"]
    assert sorted(choose(browser, "kind", "changed")) == ["r0", "r4", "r8"]
    assert browser.js("document.getElementById('count').textContent") == "3 of 12"
    assert choose(browser, "kind", "") == every
    assert set(choose(browser, "alike", "sign")) == {"r2", "r3", "r6", "r7", "r10", "r11"}
    assert choose(browser, "search", "question 11?") == ["r11"]
    choose(browser, "search", "")
    choose(browser, "alike", "")
    assert set(choose(browser, "sort", "up")[:3]) == {"r2", "r6", "r10"} == set(choose(browser, "sort", "down")[-3:])
    assert choose(browser, "sort", "id") == sorted(every)
    assert set(choose(browser, "sort", "change")[-3:]) == {"r0", "r4", "r8"}
    kept = json.loads(browser.js("document.getElementById('row-scores').textContent"))
    assert [row["after"] for row in kept["rows"]] == [1, 1, 0, 1] * 3 and kept["metric"] == "accuracy"
    assert browser.problems == []


def test_its_buttons_work(browser: Browser, page: Path) -> None:
    browser.open(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.js(ground)
    browser.js("document.getElementById('theme').click()")
    assert browser.js(ground) != light
    browser.js("document.getElementById('theme').click()")
    assert browser.js(ground) == light
    browser.js("document.querySelector('.strip svg').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert browser.js("document.querySelectorAll('figure.large').length") == 1
    assert browser.js("(() => { let name; HTMLAnchorElement.prototype.click = function () { name = this.download + this.protocol; };"
                      " document.getElementById('download').click(); return name; })()") == "row_scores.jsonblob:"  # fmt: skip
    assert browser.problems == []


def test_it_is_read_without_javascript_in_the_dark_on_paper_and_on_a_phone(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    browser.open(page, script=False)
    # Expressions of the protocol run all the same.
    assert len(shown(browser)) == 12 and browser.problems == []
    assert browser.js("document.getElementById('controls').offsetParent === null")
    assert browser.js("document.getElementById('theme').offsetParent === null")
    browser.open(page)
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    light = browser.js(colours)
    browser.look(scheme="dark")
    dark = browser.js(colours)
    assert light == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"] and dark == ["rgb(20, 23, 27)", "rgb(228, 231, 235)"]
    browser.look("print", "dark")
    assert browser.js(colours) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert browser.js("['nav', '#controls', '#theme'].every((e) => document.querySelector(e).offsetParent === null)")
    assert len(browser.pdf()) > 20_000
    browser.open(page, width=390)
    # Nothing is wider than the phone: tables scroll in themselves.
    assert browser.js("document.documentElement.scrollWidth") == 390
    picture = browser.picture(tmp_path / "phone.png")
    assert picture.stat().st_size > 50_000 and browser.problems == []


@pytest.fixture
def hostile(report: Callable, made_run: Callable, made_rows: Callable, tmp_path: Path) -> Path:
    """The same texts wherever a model, data, a configuration or an evaluator has a word."""
    texts = (*HOSTILE, "".join(HOSTILE))
    metrics = [{"step": 1, "loss": 1.0, f"rewards/{text}/mean": 1.0, f"alarm/{text}": 1.0} for text in texts]
    run = made_run(
        f"run {HOSTILE[1].replace('/', '')}",
        metrics=metrics,
        stage=HOSTILE[0],
        command=[*texts],
        directory=str(tmp_path),
        state=HOSTILE[3],
        recipe=HOSTILE[5],
        versions=dict.fromkeys(texts, HOSTILE[0]),
        config={"model": {"model": HOSTILE[1]}},
        git={"commit": HOSTILE[0], "changed_files": [*texts]},
        topology={"world_size": 1, "launcher": HOSTILE[3]},
        job={"SLURM_JOB_NAME": HOSTILE[0]},
    )
    bad = {"total": 1, "by_reason": {HOSTILE[1]: 1}, "rows": [{"where": HOSTILE[0], "problem": HOSTILE[3]}]}
    files = [{"name": "n", "path": HOSTILE[1], "rows": 1, "used": 1, "content_hash": HOSTILE[0]}]
    audit = {"train": {"files": files, "bad_rows": bad, "tokens": {"min": 1}}, "bad_during_run": bad}
    (run / "data_audit.json").write_text(json.dumps(audit))
    status = {
        "state": "failed",
        "step": 1,
        "checkpoint": None,
        "reason": HOSTILE[1],
        "output_dir": "",
        "restart_count": 0,
    }
    (run / "status.json").write_text(
        json.dumps(status | {"started": "2026-01-01T00:00:00+00:00", "updated": HOSTILE[0]})
    )
    sample = {
        "step": 1,
        "id": HOSTILE[0],
        "prompt": HOSTILE[1],
        "completion": HOSTILE[3],
        "reference": "",
        "rewards": {HOSTILE[0]: 1.0},
    }
    write_lines(run / "samples.jsonl", [sample])
    rows = [json.loads(line) for line in made_rows("a.jsonl", ["yes"] * len(texts)).read_text().splitlines()]
    for row, text in zip(rows, texts, strict=True):
        row |= {
            "id": text,
            "prediction": text,
            "question": text,
            "group": text,
            "category": text,
            "weather": text,
            text: text,
        }
        row["reference"] = rows[0]["reference"] if row is rows[-1] else text
        row["candidates"] = [{"box": [1, 2, 30, 20], "name": text}]
        row["image"] = [row["image"], text]
    predictions = write_lines(tmp_path / f"a {HOSTILE[1].replace('/', '')}.jsonl", rows)
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": HOSTILE[0]}]
    train = write_lines(
        tmp_path / "train.jsonl", [{"id": "1", "group": HOSTILE[0], "category": HOSTILE[1], "conversations": turns}]
    )
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = tmp_path / "scores.json"
    entry = {"scores": {"youden_J": score, **dict.fromkeys(texts, score)}}
    scores.write_text(json.dumps({"checkpoints": dict.fromkeys(texts, entry), "baselines": dict.fromkeys(texts, entry),
                                  "comparisons": [{"first": HOSTILE[0], "second": HOSTILE[1], HOSTILE[3]: score}],
                                  "judge": dict.fromkeys(texts, HOSTILE[0])}))  # fmt: skip
    code, _, error = report(
        run, "--predictions", predictions, "--train", train, "--scores", scores, "--title", HOSTILE[5]
    )
    assert code == 0, error
    return tmp_path / "report.html"


def test_hostile_words_run_nothing(browser: Browser, hostile: Path, tmp_path: Path) -> None:
    text = hostile.read_text()
    # Without the policy too: escaping alone must hold.
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    assert len(bare.read_text()) < len(text)
    for page in (hostile, bare):
        browser.open(page)
        assert browser.problems == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
        assert browser.js("window.hacked") is None
        assert browser.js("document.title") == HOSTILE[5]
        assert browser.js("document.querySelectorAll('script').length") == 2
        assert (
            browser.js("document.querySelectorAll('img, iframe, object, embed, link:not([rel=icon]), base').length")
            == 0
        )
        handlers = (
            "[...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => /^on/i.test(a.name)))"
        )
        assert browser.js(f"{handlers}.length") == 0
        links = "[...document.querySelectorAll('[href], [src]')].map((e) => e.getAttribute('href') ?? e.getAttribute('src'))"
        assert all(link.startswith(("#", "data:")) for link in browser.js(links))
        assert browser.js("[...document.querySelectorAll('section')].map((e) => e.id)") == BLOCKS
        # The words stand there as words, in full, and the page's own script still works.
        assert set(HOSTILE) < set(browser.js("[...document.querySelectorAll('.question')].map((e) => e.textContent)"))
        assert choose(browser, "search", HOSTILE[4]) != [] and choose(browser, "sort", "id")
        kept = json.loads(browser.js("document.getElementById('row-scores').textContent"))
        assert {row["id"] for row in kept["rows"]} >= set(HOSTILE)
        assert browser.problems == []


def test_the_browser_sees_what_would_be_wrong(browser: Browser, tmp_path: Path) -> None:
    """The checks above can fail: a page with an error, a request and a script that data brought."""
    page = tmp_path / "wrong.html"
    page.write_text(f"<script>console.error('a'); throw new Error('b')</script><img src='x.png'>{HOSTILE[0]}")
    browser.open(page)
    assert len(browser.problems) >= 2 and browser.js("window.hacked") == 1
    assert any(url.endswith("x.png") for url in browser.requests)
