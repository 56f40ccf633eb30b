"""The ways in which a reinforcement learning run fails while its loss looks fine."""

from typing import Any

import pytest

from drive_vlm.stages.rl.alarms import AlarmConfig, Alarms

GOOD: dict[str, Any] = {"zero_variance": 0.2, "all_zero": False, "length": 40.0, "truncated": 0.1, "kl": 0.05}


def alarms(**config: Any) -> Alarms:
    watched = Alarms(AlarmConfig(alarm_after=3, **config), speaks=True)
    for _ in range(10):
        assert not any(watched.observe(**GOOD).values())
    return watched


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("zero_variance", {"zero_variance": 0.9}, "90% of the groups"),
        ("zero_reward", {"zero_variance": 1.0, "all_zero": True}, "got a reward of 0"),
        ("kl", {"kl": 2.5}, "2.5 nats a token"),
        ("kl", {"kl": float("nan")}, "nan nats"),
        ("short", {"length": 8.0}, "8.0 tokens on average, a 5.0th of the 40.0"),
        ("long", {"length": 200.0}, "5.0 times the 40.0"),
        ("truncated", {"truncated": 1.0}, "--max_completion_length"),
    ],
)
def test_an_alarm_sounds_once_after_three(name: str, bad: dict, words: str, capsys: pytest.CaptureFixture) -> None:
    watched = alarms()
    sounded = [watched.observe(**GOOD | bad)[f"alarm/{name}"] for _ in range(5)]
    assert sounded == [0, 0, 1, 1, 1]
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1 and words in told
    assert not any(watched.observe(**GOOD).values())


def test_a_good_batch_between_begins_anew(capsys: pytest.CaptureFixture) -> None:
    watched = alarms()
    for _ in range(3):
        for values in (GOOD | {"kl": 9.0}, GOOD | {"kl": 9.0}, GOOD):
            assert not any(watched.observe(**values).values())
    assert not capsys.readouterr().err


def test_stop_and_resume() -> None:
    watched = alarms(stop_on_alarm=True)
    for _ in range(2):
        watched.observe(**GOOD | {"truncated": 1.0})
    resumed = Alarms(AlarmConfig(alarm_after=3, stop_on_alarm=True), speaks=True)
    resumed.load(watched.state())
    with pytest.raises(ValueError, match=r"cut off.*--stop_on_alarm"):
        resumed.observe(**GOOD | {"truncated": 1.0})


def test_without_a_reference_there_is_no_kl() -> None:
    assert alarms().observe(**GOOD | {"kl": None})["alarm/kl"] == 0


@pytest.mark.parametrize("wrong", [{"alarm_length": 1.0}, {"alarm_after": 0}, {"alarm_zero_variance": 1.5}])
def test_settings_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
        AlarmConfig(**wrong)
