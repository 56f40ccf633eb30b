"""The reward "clarify": ClarifyVLM's scale, the gate, a judge over HTTP, its votes, and what it is watched by."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from drive_vlm.evaluation.clarify_replies import CANNOT_TELL, FAIL, PASS, ClarifyRow, published_reward
from drive_vlm.judges.chat_client import ChatError
from drive_vlm.judges.clarify_verdicts import facts
from drive_vlm.rewards import build_reward
from drive_vlm.rewards.clarify import ALARMS, CANARIES, ClarifyConfig
from drive_vlm.stages.rl.alarms import AlarmConfig, Alarms
from drive_vlm.stages.rl.rollouts import reward_facts
from drive_vlm.stages.rl.scorers import Scorer

CARS = [
    {"name": "the car on the left", "box": [0, 50, 40, 90], "category": "vehicle", "attributes": {"kind": "car", "color": "red", "side": "left"}},
    {"name": "the car in the middle", "box": [90, 50, 130, 80], "category": "vehicle", "attributes": {"kind": "car", "color": "blue", "side": "middle"}},
    {"name": "the truck", "box": [180, 50, 220, 85], "category": "vehicle", "attributes": {"kind": "truck", "color": "white", "side": "right"}},
]  # fmt: skip
NAMES = [thing["name"] for thing in CARS]
AMBIGUOUS = {
    "question": "What color is the vehicle?", "ambiguous": 1, "level": 2, "type": "ambiguous", "attribute": "color", "candidates": CARS,
    "target": None, "answer": "", "answers": dict(zip(NAMES, ("It is red.", "It is blue.", "It is white."), strict=True)),
}  # fmt: skip
CLEAR = AMBIGUOUS | {
    "question": "What color is the truck?", "ambiguous": 0, "level": 0, "type": "clear", "target": 2, "answer": "It is white.", "answers": {},
}  # fmt: skip
MISSING = CLEAR | {
    "question": "What color is the bus?", "type": "missing_referent", "target": None, "answer": "There is no bus in the picture.",
}  # fmt: skip
ASKS_ALL = "Do you mean the car on the left, the car in the middle or the truck?"


def columns(*rows, **more):
    """The rows as columns, with ids and no picture."""
    found = {name: [row[name] for row in rows] for name in rows[0]}
    return {"id": [f"r{i}" for i in range(len(rows))], "files": [[] for _ in rows]} | found | more


def reward(**flags):
    return build_reward("clarify", ClarifyConfig(**flags))


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (224, 224), "gray").save(tmp_path / "one.png")
    return [str(tmp_path / "one.png")]


def verdict(strategy=4, factual="pass", asked=True):
    return json.dumps({"strategy": strategy, "factual": factual, "asked": asked, "why": "so"})


@pytest.fixture
def judged(chat_server, tmp_path):
    """`judged(**flags)`: the reward with the test's server as its judge, which gives 4 and a pass."""
    chat_server.answer = lambda body: verdict()

    def make(**flags):
        server = {"judge_model": "m", "judge_url": chat_server.url, "cache": str(tmp_path / "cache")}
        return reward(**server | {"clarify_mode": "judge", "judge_attempts": 2} | flags)

    return make


@pytest.mark.parametrize(
    ("row", "reply", "value", "strategy", "factual"),
    [
        (AMBIGUOUS, ASKS_ALL, 1.0, 4, PASS),
        (AMBIGUOUS, "**Do you mean** the truck or the nearest car?", 0.8, 3, PASS),
        (AMBIGUOUS, "Which one do you mean?", 0.6, 2, CANNOT_TELL),
        (AMBIGUOUS, "Do you mean the bus or the tram?", 0.3, 2, FAIL),
        (AMBIGUOUS, "Red, blue and white.", 1.0, 4, PASS),
        (AMBIGUOUS | {"level": 3}, "Red, blue and white.", 0.0, None, None),
        (AMBIGUOUS, "It is red.", 0.0, None, None),
        (CLEAR, "It is white.", 1.0, 4, PASS),
        # Direct and wrong: more than a question back, which is what keeps asking from paying everywhere.
        (CLEAR, "It is red.", 0.7, 4, FAIL),
        (CLEAR, "It is red or white.", 0.5, 3, FAIL),
        (CLEAR, "It is white. Do you mean the truck or the car?", 0.0, None, None),
        (CLEAR, "I cannot say.", 0.0, 1, CANNOT_TELL),
        (CLEAR, "", 0.0, None, None),
        (MISSING, "There is no bus in the picture.", 1.0, 4, PASS),
        (MISSING, "It is white.", 0.0, None, None),
    ],
)
def test_the_published_scale_by_rule(row, reply, value, strategy, factual):
    """{1: 0, 2: .6, 3: .8, 4: 1} less .3 for a wrong fact; what does not pass the gate is not rated."""
    scored = reward()
    assert scored([""], [reply], **columns(row)) == [value]
    [terms] = scored.last_terms
    assert (terms.strategy, terms.factual, terms.gated) == (strategy, factual, strategy is None)


def test_rates_are_logged():
    logged, scored = {}, reward()
    said = [ASKS_ALL, "It is red.", "# Well\nIt is white.", "What? Do you mean the truck?"]
    scored([""] * 4, said, **columns(AMBIGUOUS, AMBIGUOUS, CLEAR, CLEAR, log_metric=logged.__setitem__))
    assert logged == {
        "clarify/asked_when_clear": 0.5, "clarify/asked_when_ambiguous": 0.5, "clarify/right_strategy": 0.5, "clarify/strategy": 4,
        "clarify/wrong_fact": 0, "clarify/cannot_tell": 0, "clarify/unread": 0, "clarify/question_marks": 0.75, "clarify/markdown": 0.25,
    }  # fmt: skip
    scored([""], ["It is red."], **columns(AMBIGUOUS, log_metric=(alone := {}).__setitem__))
    assert "clarify/asked_when_clear" not in alone and "clarify/strategy" not in alone


def test_what_a_question_back_may_earn_besides():
    scored = reward(clarify_novelty=0.5, clarify_resolution=0.2)
    said = [ASKS_ALL, "What color is the vehicle?", "It is white."]
    # Names are new and split the answers; an echo is neither; a clear row has nothing of it.
    expected = [1 + 0.5 * 0.3 + 0.2 * 0.5, 0.6 - 0.5 * 0.3 - 0.2 * 0.3, 1]
    assert scored([""] * 3, said, **columns(AMBIGUOUS, AMBIGUOUS, CLEAR)) == pytest.approx(expected)


def test_rows_of_another_form_are_known_before_the_training(judged, picture):
    rows = columns(CLEAR, CLEAR, CLEAR | {"target": 7}, files=[picture, [], picture], video=[None] * 3)
    rows["candidates"][1] = None
    found = reward().check(**rows)
    assert found[0] is None and found[1].startswith("row r1: no column 'candidates'; the columns question, ambiguous")
    assert found[2].startswith("row r2: a column has a value that it cannot have;")
    assert "no column 'candidates'" in reward().check(id=["a"], reference=["x"])[0]
    seen = judged().check(**columns(CLEAR, CLEAR, CLEAR, files=[picture, [], ["a.mp4"]], video=[None, None, "a.mp4"]))
    assert seen == [None, *["a judge is to see the picture, and the row has none"] * 2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"clarify_mode": "judge"}, "no judge: give --judge_model"),
        ({"judge_model": "m"}, "--judge_model is for --clarify_mode judge, and it is rule"),
        ({"clarify_gate": "none"}, "--clarify_gate none is for --clarify_mode judge"),
        ({"clarify_votes": 3}, "--clarify_votes 3 is for --clarify_mode judge"),
        ({"clarify_prompt": ["p.txt"]}, "--clarify_prompt is for --clarify_mode judge"),
        ({"clarify_mode": "judge", "judge_model": "m", "clarify_votes": 2}, "--clarify_votes 2 has no median"),
        ({"clarify_mode": "judge", "judge_model": "m", "clarify_prompt": ["/nowhere"]}, "the prompt cannot be read"),
        ({"clarify_mode": "judge", "judge_model": "m", "clarify_prompt": ["a"] * 3}, "--clarify_prompt has 3 files"),
        ({"clarify_mode": "judge", "judge_model": "m", "clarify_held_out_model": "m"}, "is the training's own judge"),
        ({"clarify_held_out_url": "http://localhost/v1"}, "--clarify_held_out_url without --clarify_held_out_model"),
    ],
)
def test_flags_that_do_not_go_together(flags, words):
    with pytest.raises(ValueError, match=words):
        reward(**flags)


def test_a_judge_sees_picture_facts_and_the_plain_reply(judged, chat_server, picture):
    """After the gate: nothing is asked about a wrong strategy or an empty reply, and equal requests are made once and paid once."""
    scored, logged = judged(price_in=1e6, price_out=0.0), {}
    said = ["**Which** one [[4]] do you `mean`?", "**Which** one do you mean?", "It is red.", "It is red.", ""]
    rows = columns(*[AMBIGUOUS] * 3, *[CLEAR] * 2, files=[picture] * 5, log_metric=logged.__setitem__)
    chat_server.answer = lambda body: f"<think>{{}}</think> So: {verdict(*_of(body))}"
    assert scored([""] * 5, said, **rows) == [0.8, 0.8, 0, 0.5, 0]
    assert [terms.gated for terms in scored.last_terms] == [False, False, True, False, True]
    assert len(chat_server.requests) == 2 and logged["clarify/judge_requests"] == 2
    assert logged["clarify/cannot_tell"] == pytest.approx(2 / 3) and logged["clarify/unread"] == 0
    [asking] = [body["messages"][-1]["content"] for body in chat_server.requests if "Which" in str(body)]
    assert asking[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "\n-----\nWhich one do you mean?\n-----\n" in asking[1]["text"]
    assert "1. the car on the left (vehicle, kind car, color red, side left; box 0 50 40 90); the answer for it: It is red." in asking[1]["text"]  # fmt: skip
    assert logged["clarify/judge_cost"] == sum(len(text.split()) for text in chat_server.last_texts())
    # Again from the cache, which is counted apart.
    assert scored([""] * 5, said, **rows) == [0.8, 0.8, 0, 0.5, 0]
    assert (logged["clarify/judge_requests"], logged["clarify/judge_cached"], logged["clarify/judge_cost"]) == (0, 2, 0)


def _of(body):
    """(strategy, factual) of a judge that knows no truth about ambiguous questions."""
    text = body["messages"][-1]["content"][-1]["text"]
    return (3, "cannot_tell") if "The question is ambiguous" in text else (3, "fail")


def test_facts_by_kind_of_row():
    said = [facts(ClarifyRow.read(row, "row")) for row in (CLEAR, MISSING, AMBIGUOUS | {"level": 3})]
    assert said[0].startswith("The question is clear. It means thing 3. Right answer: It is white.\n1. the car on the")
    assert said[1].startswith("Nothing in the picture fits the question") and "There is no bus" in said[1]
    assert said[2].startswith("The question is ambiguous: it fits the 3 things below, and their answers differ.\n1. ")


@pytest.mark.parametrize(
    ("strategy", "factual", "value"),
    [(4, "pass", 1), (4, "fail", 0.7), (3, "fail", 0.5), (2, "cannot_tell", 0.6), (2, "fail", 0.3), (1, "fail", 0)],
)
def test_the_judge_alone_is_the_published_reward(judged, chat_server, picture, strategy, factual, value):
    """Without the gate also where the strategy is wrong by rule."""
    chat_server.answer = lambda body: verdict(strategy, factual)
    assert judged(clarify_gate="none")([""], ["It is red."], **columns(AMBIGUOUS, files=[picture])) == [value]
    assert judged()([""], ["It is red."], **columns(AMBIGUOUS, files=[picture])) == [0]


@pytest.mark.parametrize(
    "reply",
    ["I would say 4.", "", '{"score": 4}', '{"strategy": 5, "factual": "pass", "asked": true, "why": ""}',
     '{"strategy": 4, "factual": "yes", "asked": true, "why": ""}', '{"strategy": 4, "factual": "pass", "asked": true}', "{'strategy': 4}"],
)  # fmt: skip
def test_what_is_no_verdict_is_unknown_and_never_the_worst(judged, chat_server, picture, reply):
    chat_server.answer = lambda body: reply
    scored, logged = judged(judge_retries=0), {}
    rows = columns(AMBIGUOUS, CLEAR, files=[picture] * 2, log_metric=logged.__setitem__)
    assert scored([""] * 2, [ASKS_ALL, ASKS_ALL], **rows) == [None, 0]
    assert logged["clarify/unread"] == 1 and len(chat_server.requests) == 2
    scorer = Scorer("clarify", scored)
    assert scorer.must_score and scorer.whole_group and scorer.terms(2)[0]["reward"] is None


# A model of this size follows examples, not instructions.
EXAMPLES = [
    ("What color is the car?", "The question is clear. Right answer: It is red.", "It is red.", verdict(4, "pass", False)),
    ("What color is the car?", "The question is ambiguous: it fits two things.", "Which one do you mean?", verdict(2, "pass", True)),
    ("What color is the bus?", "The question is clear. Right answer: It is blue.", "It is green.", verdict(3, "fail", False)),
]  # fmt: skip


@pytest.mark.slow
def test_smollm2_judges_over_http(smollm2_server, picture, tmp_path):
    """SmolLM2-135M, which sees no picture, is a poor judge. What is proved is the protocol: its verdicts are read or counted as unread,
    each reply is paid for once, and no reply gets the worst score because its verdict could not be read."""
    form, turns = "Q: {question}\nFacts: {facts}\nReply: {reply}\nVerdict:", []
    for question, known, reply, said in EXAMPLES:
        text = form.replace("{question}", question).replace("{facts}", known).replace("{reply}", reply)
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]
    (tmp_path / "prompt.json").write_text(json.dumps([*turns, {"role": "user", "content": form}]))
    said = [ASKS_ALL, "It is white.", "It is red.", "It is red."]
    rows = columns(AMBIGUOUS, CLEAR, CLEAR, AMBIGUOUS, files=[picture] * 4)
    server = {
        "judge_model": "smollm2",
        "judge_url": smollm2_server.url,
        "cache": str(tmp_path / "cache"),
        "judge_workers": 1,
    }
    flags = server | {
        "clarify_prompt": [str(tmp_path / "prompt.json")],
        "judge_attempts": 1,
        "price_in": 2e6,
        "price_out": 3e6,
    }

    def judged(tokens):
        scored, logged = reward(clarify_mode="judge", judge_max_tokens=tokens, **flags), {}
        return scored([""] * 4, said, **rows, log_metric=logged.__setitem__), scored.last_terms, logged

    rewards, terms, logged = judged(40)
    # The silent pick is gated, and nobody is asked about it.
    assert rewards[3] == 0 and terms[3].gated and len(smollm2_server.requests) == 3 == logged["clarify/judge_requests"]
    read = [one for one in terms[:3] if one.strategy is not None]
    assert read and all(one.reward == published_reward(one.strategy, one.factual) for one in read)
    assert all(one.reward is None for one in terms[:3] if one.strategy is None)
    assert logged["clarify/unread"] == pytest.approx(1 - len(read) / 3)
    turns = [turn for body in smollm2_server.requests for turn in body["messages"]]
    prompted = sum(len(smollm2_server.text_of(turn).split()) for turn in turns)
    replied = sum(len(one.replies[0].split()) for one in terms[:3])
    assert logged["clarify/judge_cost"] == pytest.approx(2 * prompted + 3 * replied)

    again, _, logged = judged(40)
    assert again == rewards and len(smollm2_server.requests) == 3
    assert [logged[f"clarify/judge_{name}"] for name in ("requests", "cached", "cost")] == [0, 3, 0]

    # Three tokens hold no verdict: what passes the gate is unknown, and what does not is 0 as before.
    cut, terms, logged = judged(3)
    assert cut == [None] * 3 + [0] and logged["clarify/unread"] == 1 and all(one.replies[0] for one in terms[:3])


def test_a_judge_that_dies_is_one_line(judged, chat_server, picture):
    scored = judged(judge_retries=0)
    chat_server.stop()
    with pytest.raises(ChatError, match=r"^m at http://127\.0\.0\.1:\d+/v1: .*APIConnectionError") as stopped:
        scored([""], [ASKS_ALL], **columns(AMBIGUOUS, files=[picture]))
    assert "\n" not in str(stopped.value)


def test_votes_are_asked_apart_and_in_other_words(judged, chat_server, picture):
    """The first greedy; the others sampled, each with its own seed, in other words."""

    def answer(body):
        seed = body.get("seed", 0)
        return {0: verdict(4), 2: verdict(2, "fail"), 4: verdict(3, "fail")}[seed]

    chat_server.answer = answer
    scored = judged(clarify_votes=3)
    assert scored([""], [ASKS_ALL], **columns(AMBIGUOUS, files=[picture])) == [0.5]
    assert [body.get("seed") for body in chat_server.requests] == [None, 2, 4]
    assert [body["temperature"] for body in chat_server.requests] == [0, 0.7, 0.7]
    first, second, third = chat_server.last_texts()
    assert (
        len({first, second, third}) == 3
        and all(ASKS_ALL in text for text in (first, second, third))
        and len(scored.last_terms[0].replies) == 3
    )


def test_a_prompt_of_ones_own(judged, chat_server, picture, tmp_path):
    (tmp_path / "own.txt").write_text("Q {question}\nF {facts}\nR {reply}")
    scored = judged(clarify_prompt=[str(tmp_path / "own.txt")], clarify_votes=3)
    assert scored([""], [ASKS_ALL], **columns(AMBIGUOUS, files=[picture])) == [1]
    assert all(text.startswith("Q What color is the vehicle?\nF The question") for text in chat_server.last_texts())
    (tmp_path / "own.txt").write_text("R {reply}")
    with pytest.raises(ValueError, match=r"must hold \{question\}, \{facts\}"):
        judged(clarify_prompt=[str(tmp_path / "own.txt")])


def test_canaries_earn_nothing_by_rule():
    scored = reward()
    assert scored.check(**columns(AMBIGUOUS, *[CLEAR] * 9, MISSING)) == [None] * 11
    found = scored.probe()
    assert found["rows"] == 4 and found["alarm"] is None and found["canaries"] == dict.fromkeys(CANARIES, [0.0] * 4)
    # Answers that no table knows: whatever is said counts as an answer, and the probe says so.
    scored.check(**columns(*[CLEAR | {"attribute": "free"}] * 2))
    assert "it_depends 0.70" in (told := scored.probe())["alarm"] and "take --clarify_mode judge" in told["alarm"]
    scored.check(**columns(AMBIGUOUS))
    assert "no clear row" in scored.probe()["alarm"]


def test_canaries_find_a_judge_that_is_pleased_by_questions(judged, chat_server, picture):
    """Without the gate an always-ask reply gets what the judge gives; with it, no judge is asked about it."""
    chat_server.answer = lambda body: verdict(4 if "which one you mean" in _reply(body) else 1)
    rows = columns(*[CLEAR] * 2, files=[picture] * 2, video=[None] * 2)
    open_, closed = judged(clarify_gate="none"), judged()
    open_.check(**rows), closed.check(**rows)
    found = open_.probe()
    assert found["canaries"]["always_ask"] == [1, 1] and found["canaries"]["injection"] == [0, 0]
    assert "on clear rows: always_ask 1.00. A policy" in found["alarm"] and "--clarify_gate rule" in found["alarm"]
    asked = len(chat_server.requests)
    # At the end the judge is asked again: the cache would repeat what it said at the start.
    assert open_.probe()["canaries"] == found["canaries"] and len(chat_server.requests) == 2 * asked == 10
    # Behind the gate only what answers nothing without asking is asked about.
    assert closed.probe()["alarm"] is None and len(chat_server.requests) == 2 * asked + 3


def test_a_judge_that_cannot_be_read_is_known_at_the_start(judged, chat_server, picture):
    chat_server.answer = lambda body: "A fine reply."
    scored = judged()
    scored.check(**columns(CLEAR, files=[picture], video=[None]))
    found = scored.probe()
    assert found["canaries"]["always_ask"] == [0] and found["canaries"]["it_depends"] == [None]
    assert found["alarm"].startswith("a canary reply got no verdict that can be read")


def _reply(body):
    return body["messages"][-1]["content"][-1]["text"].split("-----")[1]


def test_an_alarm_sounds_when_the_judges_part(judged, chat_server, picture, capsys):
    """The held-out judge rates the same replies, every third step; the training's judge begins to like everything."""
    pleased = []
    chat_server.answer = lambda body: verdict(4 if body["model"] == "m" and pleased else 3)
    scored = judged(clarify_held_out_model="other", clarify_held_out_every=3)
    watched = Alarms(AlarmConfig(), speaks=True, watched=scored.alarms)
    gaps, sounded = [], []
    for step in range(8):
        if step == 5:
            pleased.append(step)
        logged = {}
        said = [f"Number {step}: do you mean the truck or the car?", "It is red."]
        state = SimpleNamespace(global_step=step)
        scored([""] * 2, said, **columns(AMBIGUOUS, AMBIGUOUS, files=[picture] * 2, trainer_state=state, log_metric=logged.__setitem__))  # fmt: skip
        gaps.append(logged.get("clarify/judge_gap"))
        found = watched.observe(0.0, False, 9.0, 0.0, None, logged)
        sounded.append(found["alarm/judges_part"])
    assert gaps == [0, None, None, 0, None, None, pytest.approx(0.2), None] and sounded == [0] * 6 + [1, 1]
    told = capsys.readouterr().err
    assert "warning: alarm judges_part (1 generation batch in a row): The training's judge gives 0.20 more" in told
    assert [body["model"] for body in chat_server.requests].count("other") == 3


def test_a_judge_may_watch_the_rule(chat_server, picture, tmp_path):
    """It sees what the rule has rated, and changes no reward."""
    chat_server.answer = lambda body: verdict(2)
    server = {"judge_url": chat_server.url, "cache": str(tmp_path / "cache"), "clarify_held_out_model": "other"}
    scored, logged = reward(**server), {}
    rows = columns(AMBIGUOUS, CLEAR, CLEAR, files=[picture] * 3, log_metric=logged.__setitem__)
    assert scored([""] * 3, [ASKS_ALL, "It is red.", ASKS_ALL], **rows) == [1, 0.7, 0]
    assert (logged["clarify/train_judge"], logged["clarify/held_out_judge"]) == pytest.approx((0.85, 0.6))
    assert len(chat_server.requests) == 2 and "clarify/judge_requests" not in logged


def test_a_policy_that_asks_everywhere_is_noticed():
    """Above .3, or twice what it was at the start, for --alarm_after batches."""
    rest = {"zero_variance": 0.0, "all_zero": False, "length": 9.0, "truncated": 0.0, "kl": None}

    def sounds(*rates):
        watched = Alarms(AlarmConfig(alarm_after=2), speaks=False, watched=ALARMS)
        for rate in [0.05] * 10 + list(rates):
            found = watched.observe(**rest, logged={"clarify/asked_when_clear": rate})
        return found["alarm/over_asking"], watched

    assert [sounds(*rates)[0] for rates in ((0.09, 0.09), (0.11, 0.11), (0.11, 0.09), (0.11, 0.09, 0.2))] == [
        0,
        1,
        0,
        0,
    ]
    # The start and what sounds are in the checkpoint; a batch without clear rows changes nothing.
    _, before = sounds(0.11)
    resumed = Alarms(AlarmConfig(alarm_after=2), speaks=False, watched=ALARMS)
    resumed.load(json.loads(json.dumps(before.state())))
    assert resumed.observe(**rest, logged={"reward": 0.5})["alarm/over_asking"] == 0
    assert resumed.observe(**rest, logged={"clarify/asked_when_clear": 0.11})["alarm/over_asking"] == 1
    with pytest.raises(ValueError, match="two alarms have one name"):
        Alarms(AlarmConfig(), speaks=False, watched=[dataclasses.replace(ALARMS[0], name="kl")])


@pytest.mark.parametrize(
    ("name", "silent", "sounds"),
    [
        # One question mark a reply is enough to ask back; three of ten replies with markup are the most, and so is one verdict of five.
        ("question_marks", [ASKS_ALL] * 10, [ASKS_ALL] * 9 + ["Which? The car or the truck?"]),
        ("markdown", ["It is white."] * 7 + ["**White.**"] * 3, ["It is white."] * 6 + ["**White.**"] * 4),
        (
            "unread",
            [*["It is white."] * 8, "Mumbling: white.", "It mumbles: white."],
            [*["White."] * 3, "Mumbling: white."],
        ),
    ],
)
def test_alarms_of_what_may_fool_a_judge(judged, chat_server, picture, capsys, name, silent, sounds):
    """At the limit they are silent; above it they sound after --alarm_after batches, and say what to do."""
    chat_server.answer = lambda body: "A fine reply." if "umbl" in _reply(body) else verdict()
    scored = judged(price_in=0.0, price_out=0.0)

    def alarms(said):
        watched, found = Alarms(AlarmConfig(alarm_after=2), speaks=True, watched=scored.alarms), []
        row = AMBIGUOUS if ASKS_ALL in said else CLEAR
        for _ in range(2):
            logged: dict[str, float] = {}
            scored([""] * len(said), said, **columns(*[row] * len(said), files=[picture] * len(said), log_metric=logged.__setitem__))  # fmt: skip
            observed = watched.observe(0.0, False, 9.0, 0.0, None, logged)
            found.append([alarm for alarm, on in observed.items() if on])
        return found

    assert alarms(silent) == [[], []] and "warning: " not in capsys.readouterr().err
    assert alarms(sounds) == [[], [f"alarm/{name}"]]
    [words] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    way_out = {
        "question_marks": "Read samples.jsonl",
        "markdown": "look in samples.jsonl",
        "unread": "--judge_attempts",
    }
    assert words.startswith(f"warning: alarm {name} (2 generation batches in a row): ") and way_out[name] in words


def test_a_resumed_run_may_ask_the_judges_elsewhere():
    def known(host, **flags):
        config = ClarifyConfig(judge_url=f"http://{host}/v1", clarify_held_out_url=f"http://{host}/v1", **flags)
        return reward_facts([("clarify", config)])

    assert known("a") == known("b") and known("a") != known("a", clarify_gate="none")
