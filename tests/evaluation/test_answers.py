"""What a model says, read: hundreds of generated spellings whose meaning is known, and answers that must stay unread."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from drive_vlm.evaluation.answers import (
    FORMS,
    options_of,
    points_text,
    read_choice,
    read_number,
    read_points,
    read_yes_no,
    strict_choice,
    strict_yes_no,
)

OPTIONS = {"A": "Going ahead", "B": "Turn left", "C": "Stopped", "D": "Reverse parking"}
SEED, SPELLINGS = 16, 500
Rng = random.Random


def fence(text: str) -> str:
    return f"```json\n{text}\n```"


# What says the letter L (words W) and nothing else. {l}: small.
SAYS = (
    "{L}.", "({L})", "{L})", "[{L}]", "{l}", "({l})", "{l}.", "**{L}**", '"{L}"', "{L}. {W}", "{L}. {W}.", "{L}: {W}", "{L}) {W}", "({L}) {W}",
    "{l}. {w}", "{L} - {W}", "{L}\nThe car {w}.", "{L} {W}", "Option {L}", "Option {L}.", "option ({l})", "Choice: {L}", "Answer: {L}", "Answer: {L}. {W}",
    "answer: {l}", "**Answer:** {L}", "The answer is {L}.", "The correct answer is {L}.", "The correct answer is ({L}).", "The correct answer is: {L}. {W}.",
    "The answer is option {L}.", "The best option is {L}", "the answer is {l}", "I choose {L}.", "I would select option {L}.", "I pick ({L}) {W}",
    "{L} is correct.", "Option {L} is the correct answer.", "So the answer is {L}", "Therefore, {L}.", "Thus, the answer must be {L}.", "It is {L}.", "It's {L}.",
    "The car is near the kerb.\n{L}", "The car is near.\n\nAnswer: {L}", "Looking at the picture, the answer is {L} because of the light.", "{L}, because of the light.",
    "{W}", "{W}.", "{w}", "The answer is {w}.", "The correct answer is: {W}", '{{"answer": "{L}"}}', '{{"answer": "{L}. {W}"}}', '{{"choice": "({l})"}}',
    '{{"reason": "B or C?", "final_answer": "{L}"}}', '{{"Answer": ["{L}"]}}', '{{"option": "{W}"}}', 'Here it is: {{"answer": "{L}"}}', '["{L}"]',
    "<think>Is it A? Or B, or C?</think>{L}", "<think>The answer is A. No: B.</think>\nThe answer is {L}.", "<answer>{L}</answer>", "<answer>({l})</answer> since it moves",
    "It moves. <answer>{L}. {W}</answer>", "So \\boxed{{{L}}}", "$\\boxed{{\\text{{{L}}}}}$", "{L}<|im_end|>", "Final Answer: {L}", "# Answer\n{L}",
    'The moving status of object <c1,CAM_BACK,1088.3,497.5> is "{W}."', "The status of the car is {w}.", "The car in front is “{W}”.",
    "A. Going ahead. B. Turn left. C. Stopped. D. Reverse parking. The answer is {L}.",
)  # fmt: skip
# What names no letter, two, or one and another option's words. {M}, {V}: another option.
UNCLEAR = (
    "", "   ", "{L} or {M}", "{L}, {M}", "{L} and {M}", "{L}/{M}", "{L} & {M}", "The answer is {L} or {M}.", "The answer is {L}, {M}", "Both {L} and {M}",
    "{L}. {W} {M}. {V}", "{L}: {W}\n{M}: {V}", "{L}. {V}", "The answer is {L}. {V}.", "{L}. {W}. The answer is {M}.", "The answer is {L}. No, the answer is {M}.",
    "The answer is not {L}.", "I don't think the answer is {L}.", "Neither {L} nor {M} is correct.", "Is the answer {L}?", "Is it {L}?", "{L}?", "E", "The answer is E.", "(F)",
    "I cannot tell.", "A car turns left there.", "The answer is a car.", "It is a truck on the left.", "I think it moves.", "None of them.", "unknown",
    '{{"answer": "{L} or {M}"}}', '{{"answer": ["{L}", "{M}"]}}', '{{"answer": "{L}", "choice": "{M}"}}', '{{"answer": 1}}', '{{"answer": null}}', '{{"speed": "3", "lane": "{L}"}}', '{{"answer": "{L}"',
    "<answer>{L}</answer><answer>{M}</answer>", "<think>It is {L}", "<think>{L}</think>", "{W}. {V}.", "ABCD", "{L}{M}", "The car is not {w}.", 'The status is not "{W}".', "Whether it is {w}.", "It was {w} and now is {v}.", '"{W}" or "{V}"', "Is the car {w}?", "Option {L} is wrong.", "The options are A, B, C and D.",
)  # fmt: skip


def spelled(rng: Rng, forms: tuple[str, ...], form: int) -> tuple[str, str]:
    """A form filled in: (text, the letter L of it)."""
    letter, other = rng.sample(list(OPTIONS), 2)
    words = {
        "L": letter,
        "l": letter.lower(),
        "W": OPTIONS[letter],
        "w": OPTIONS[letter].lower(),
        "M": other,
        "V": OPTIONS[other],
        "v": OPTIONS[other].lower(),
    }
    text = forms[form % len(forms)].format(**words)
    disguise = rng.choice((str, str, str, lambda t: f" {t}\n", lambda t: f"```\n{t}\n```", fence))
    return disguise(text), letter


def test_generated_choices_are_read_right_and_never_wrong() -> None:
    rng = random.Random(SEED)
    wrong = []
    for i in range(SPELLINGS * 2):
        says = i % 2 == 0
        text, letter = spelled(rng, SAYS if says else UNCLEAR, i // 2)
        found = read_choice(text, OPTIONS)
        if found.value != (letter if says else None) or bool(found.reason) == says:
            wrong.append((text, letter if says else None, found))
    assert not wrong, wrong[:5]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A person is crossing. The answer is B.", "B"), ("B is incorrect, so the answer is C.", "C"), ("The answer is B, not C.", "B"), ("The answer is B because option A is blocked.", "B"),
        ("Between A and B, the answer is A.", "A"), ("ANSWER IS B", "B"), ("B) Turn left.", "B"), ("A)Going ahead", "A"), ("Ｂ", "B"), ("Well: {\"answer\": \"B\"} since the answer is B.", "B"),
        ("A. Going ahead is wrong. B. Turn left is not correct. The answer is C.", "C"), ("Options: A. Going ahead B. Turn left\nAnswer: D", "D"), ("A is wrong.\nC", "C"),
        ("Option A: Going ahead is wrong. Option B: Turn left is possible.", "B"), ("The answer is B. Option C is also correct.", None), ("Not A, B", None), ("A. Going ahead is not correct.", None),
        ("Answer: A) Going ahead, B) Turn left", None), ("B\nC", None), ("This is B-pillar glass.", None), ("It is C-class.", None), ("The vehicle in lane D is right behind.", None),
        ("So I turn left there.", None), ("So a car stops.", None), ('The answer is A. {"answer": "B"}', None), ("None of A, B, C", None), ("A? No. B.", None), ("Answer: None", None),
        ("The correct answer isn't A.", None), ("The answer could be A.", None), ("The answer is B. Wait, it is red. It is A.", None), ("I do not choose A.", None), ("It is A car.", None),
        ("B. Turn left, as option A is blocked.", None), ("The answer is either A or B.", None), ("Answer: E. None of these", None), ("A or B? I choose A.", None),
    ],
)  # fmt: skip
def test_choices_that_invite_a_wrong_reading(text: str, letter: str | None) -> None:
    """Where a reader could doubt, unread is right: a wrong letter would be scored as an answer."""
    assert read_choice(text, OPTIONS).value == letter


def test_strict_takes_the_bare_letter_alone() -> None:
    rng = random.Random(SEED)
    assert [strict_choice(letter, OPTIONS).value for letter in OPTIONS] == list(OPTIONS)
    for i in range(SPELLINGS):
        text, _ = spelled(rng, SAYS + UNCLEAR, i)
        assert strict_choice(text, OPTIONS).value is None or text in OPTIONS


def test_whatever_is_strict_is_lenient_the_same() -> None:
    assert all(read_choice(letter, OPTIONS) == strict_choice(letter, OPTIONS) for letter in OPTIONS)
    # Words that the question does not give change nothing.
    assert read_choice("The answer is B.", dict.fromkeys("ABCD", "")).value == "B"


def test_options_of_several_sentences() -> None:
    straight, slow, fast = "The ego vehicle is going straight.", "It is driving slowly.", "It is driving fast."
    options = options_of(f"Select: A. {straight} {fast} B. {straight} {slow} C. {straight}")
    assert options == {"A": f"{straight} {fast}"[:-1], "B": f"{straight} {slow}"[:-1], "C": straight[:-1]}
    assert read_choice(f"{straight} {slow}", options).value == "B"
    assert read_choice(f"B. {straight} {slow}", options).value == "B"
    assert read_choice(f"A. {straight} {fast}", options).value == "A"
    # The letter of one option before the words of another.
    assert read_choice(f"A. {straight} {slow}", options).value is None
    assert read_choice(f"The answer is A: {straight} {slow}", options).value is None


def test_options_of_a_question() -> None:
    asked = "What is the status of <c3,CAM_FRONT,784.2,486.7>? Please select: A. Reverse parking. B. Going ahead. C. Turn left. D. Stopped."
    assert options_of(asked) == {"A": "Reverse parking", "B": "Going ahead", "C": "Turn left", "D": "Stopped"}
    assert options_of("Which?\n(A) a car\n(B) a bus") == {"A": "a car", "B": "a bus"}
    assert options_of("Is there a car? A. Yes") == options_of("What is it?") == {}


YES_NO = {
    True: ("Yes", "yes", "Yes.", "YES!", "Yes, there is no car.", "**Yes**", "The answer is yes.", "Answer: Yes", '{"answer": "yes"}', '{"answer": true}', "<think>no?</think>Yes", "True", "```\nyes\n```"),
    False: ("No", "no.", "No, there is a car.", "No. It stops.", "No, no car is there.", "The answer is no.", "Answer: no, it waits", '{"answer": false}', "<answer>No</answer>", "False", "no\nIt waits."),
    None: ("", "Yes and no.", "Yes or no?", "Yes/No", "No, yes.", "Yes. No.", "Maybe", "Not sure", "None", "Nothing", "Yesterday", "North", '{"answer": 1}', "The answer is yes. The answer is no.", "There is no car.", "Yes?", "No doubt it will.", "True or false", "True, false"),
}  # fmt: skip


@pytest.mark.parametrize(("truth", "text"), [(truth, text) for truth, texts in YES_NO.items() for text in texts])
def test_yes_and_no(truth: bool | None, text: str) -> None:
    found = read_yes_no(text)
    assert found.value is truth and bool(found.reason) == (truth is None)
    strict = strict_yes_no(text).value
    assert strict is (truth if text in ("Yes", "Yes.", "No", "No.") else None)


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("12.5", (), 12.5), ("-3", (), -3), ("−4 m", (), -4), ("1,200 m", (), 1200), ("about 12.", (), 12), ("The speed is 12.5 m/s.", (), 12.5), ("1e3", (), 1000),
        ('{"speed": 3}', (), 3), ('{"answer": "3 m"}', (), 3), ("3m", (), 3), ("<think>1 or 2</think>7", (), 7), ("5 m, that is 5 m", (), 5), (".5", (), 0.5), ("**8**", (), 8),
        ("in 3 s it drives 5 m/s", ("m/s",), 5), ("in 3 s it drives 5 m/s", (), None), ("5 to 7", (), None), ("5-7", (), None), ("12,5", (), None), ("1/2", (), None),
        ("1.2.3", (), None), ("nan", (), None), ("inf", (), None), ("1e999", (), None), ("CAM1", (), None), ("", (), None), ("none", (), None), ('{"answer": true}', (), None),
        ("5 m/s then 6 m/s", ("m/s",), None),
    ],
)  # fmt: skip
def test_numbers(text: str, units: tuple[str, ...], value: float | None) -> None:
    assert read_number(text, units).value == value


def test_trajectories_round_trip_in_every_form() -> None:
    rng = random.Random(SEED)
    for _ in range(100):
        steps, decimals = rng.randint(1, 12), rng.randint(0, 4)
        points = tuple(
            (round(rng.uniform(-80, 80), decimals), round(rng.uniform(-80, 80), decimals)) for _ in range(steps)
        )
        for form in FORMS:
            text = points_text(points, form, decimals)
            assert read_points(text).value == read_points(f"The plan:\n{text}\n", steps).value == points, text
            assert read_points(text, steps + 1).value is None
    assert "-0" not in points_text([(-0.001, 0.0)])
    with pytest.raises(ValueError, match="form 'xml'"):
        points_text([(0, 0)], "xml")


PLAN = ((1.0, 2.0), (3.0, 4.5), (5.0, -6.25))


@pytest.mark.parametrize(
    "text",
    [
        "[PT, (+1.00, +2.00, 0.1), (+3.00, +4.50, 0.2), (+5.00, -6.25, 0.3)]", "(1,2), (3,4.5), (5,-6.25)", "1. (1,2)\n2. (3,4.5)\n3. (5,-6.25)",
        "0.5s: (1,2)\n1.0s: (3,4.5)\n1.5s: (5,-6.25)", "(1, 2) -> (3, 4.5) -> (5, −6.25)", "History: [(9,9),(8,8),(7,7)]. Trajectory: [(1,2),(3,4.5),(5,-6.25)]",
        "[(1 m, 2 m), (3, 4.5), (5, -6.25)]", "<wp>[(1,2),(3,4.5),(5,-6.25)]</wp>", "<wp>1,2<wp>3,4.5<wp>5,-6.25", "[[1,2],[3,4.5],[5,-6.25]]",
        '{"waypoints": [{"x": 1, "y": 2}, {"x": 3, "y": 4.5}, {"x": 5, "y": -6.25}]}', '{"plan": "[(1,2),(3,4.5),(5,-6.25)]"}', "<think>(0,0)</think>[(1,2),(3,4.5),(5,-6.25)]",
        "The car at (12.0, 3.5) stops: [(1,2),(3,4.5),(5,-6.25)]", "<answer>[(1,2),(3,4.5),(5,-6.25)]</answer>", "[(1,2),(3,4.5),(5,-6.25)",
    ],
)  # fmt: skip
def test_spellings_of_a_trajectory(text: str) -> None:
    assert read_points(text, 3).value == PLAN


@pytest.mark.parametrize(
    "text",
    [
        "", "stop", "[]", "[(1,2),(3,4.5),(5", "[(1,2),(3,4.5),(5,]", "[(1,2),(3,4.5),(5,-6.25),(7", "[1,2,3,4.5,5,-6.25]", "[(nan,1),(3,4),(5,6)]", "[(1,2),(nan,1),(3,4)]",
        "[(1e999,2),(3,4),(5,6)]", "[(1,2),(3,4,5),(5,6)]", "[(1,2),(three,4),(5,6)]", "[(1,2),(3,4),...]", "From (0,0) to (10,5) and (3,4)", "[(9,9),(8,8),(7,7)] [(1,2),(3,4.5),(5,-6.25)]",
        '{"trajectory": [[1,2],[3,4],[5,null]]}', '{"trajectory": [1,2,3]}', '{"trajectory": [[1,2],[3,4],[5,true]]}', "<wp>1,2,3,4,5,6</wp>", "<wp></wp>", '{"speed": 3, "lane": 2}',
    ],
)  # fmt: skip
def test_what_is_no_clear_trajectory_is_unread_never_the_origin(text: str) -> None:
    found = read_points(text, 3)
    assert found.value is None and found.reason


READERS: tuple[Callable[[str], Any], ...] = (lambda t: read_choice(t, OPTIONS), read_yes_no, read_number, read_points)


def test_no_text_breaks_a_reader() -> None:
    rng = random.Random(SEED)
    pieces = [
        "A",
        "(B",
        "{",
        "}",
        "[",
        "(1,2)",
        "1e999",
        "\ud83d",
        "<think>",
        "</think>",
        '"answer":',
        "yes",
        "PT =",
        "<wp>",
        "\\boxed{",
        "\x00",
        "．",
        "\n",
        "**",
        "{" * 50,
        "0" * 50,
    ]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        for read in READERS:
            found = read(text)
            assert (found.value is None) == bool(found.reason), text
    long = "The car. " * 20_000
    for text in ("[" * 5000 + "A", "{" * 5000, long, "(1,2), " * 20_000, "answer is " * 10_000, "A. " * 10_000):
        assert all(isinstance(read(text).reason, str) for read in READERS)
