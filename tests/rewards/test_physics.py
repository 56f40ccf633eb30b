"""The physics reward against values computed by hand, and the mistakes that its users can make."""

import argparse
import dataclasses
import statistics

import pytest

from drive_vlm.config import CommandParser, add_dataclass, from_namespace
from drive_vlm.data.caches.feature_cache import FileIdentity
from drive_vlm.data.samples import Sample
from drive_vlm.judges.judge import JudgeConfig
from drive_vlm.rewards import REWARDS, build_reward, chosen_rewards, config_class
from drive_vlm.rewards.detections import DetectedFrame, DetectedObject, Detector, VideoDetections, append_detections
from drive_vlm.rewards.physics import PhysicsConfig, Weights, terms
from drive_vlm.rewards.text import completion_text
from drive_vlm.rewards.text.driving_text import TextParser

DETECTOR = Detector("yolov8x.pt", "00", 640, 0.3, "ultralytics 8.4.190")
REFERENCE = "After stopping, a white car, a red truck and a bus finally turn."  # 13 words, 4 of time, 2 adjectives
TEXT = "Then a red car passes a bus."  # 7 words, 2 of time, 1 adjective


def detections(path, **labels):
    entries = [
        VideoDetections(video, DETECTOR, (DetectedFrame(0, "", tuple(DetectedObject(name, 0.9, (0, 0, 1, 1)) for name in names)),))
        for video, names in labels.items()
    ]  # fmt: skip
    append_detections(path, entries)
    return str(path)


@pytest.fixture(scope="session")
def parser(spacy_model):
    return TextParser(spacy_model)


@pytest.fixture
def score(parser):
    def run(text, detected, reference=REFERENCE, **options):
        parsed = parser.parse([text, reference])
        return terms(*parsed, frozenset(detected), parser.vocabulary, **options)

    return run


@pytest.fixture
def reward(tmp_path, spacy_model):
    cache = detections(tmp_path / "d.jsonl", a=["car", "truck", "person"], b=["car"], none=[])
    return build_reward("physics", PhysicsConfig([cache], spacy_model=spacy_model))


def test_a_reward_by_hand(score):
    """Claims car and bus, car is there: P 1/2, R 1/3. Density 2/13 against 4/13; 1 of 2 adjectives."""
    found = score(TEXT, {"car", "truck", "person"})
    assert (found.precision, found.recall, found.object) == pytest.approx((1 / 2, 1 / 3, 0.4))
    assert (found.temporal, found.detail, found.hallucination) == pytest.approx((0.5, 0.5, 0.5))
    assert found.reward == pytest.approx(0.4 * 0.4 + 0.25 * 0.5 + 0.2 * 0.5 + 0.15 * 0.5)
    assert (found.claims, found.verified, found.words) == (2, 1, 7)
    assert found.false_claims == ("bus",) and found.missed == ("person", "truck") and not found.unverified


def test_the_reference_itself_gets_everything(score):
    assert score(REFERENCE, {"car", "truck", "bus"}).reward == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "detected", "f1", "hallucination"),
    [
        ("A car.", {"car"}, 1.0, 1.0),
        ("A car.", {"bus"}, 0.0, 0.0),
        ("A car.", set(), 0.0, 0.0),  # zero detections: nothing bears the claim out
        ("A car and no bus.", {"car"}, 1.0, 1.0),  # a denial is no claim
        ("A car on a road with traffic cones.", {"car"}, 1.0, 1.0),  # what no detector sees neither helps nor harms
        ("A car.", {"car", "handbag", "chair"}, 1.0, 1.0),  # optional classes need not be named
        ("A car and a handbag.", {"car", "handbag"}, 1.0, 1.0),
        ("A car and a handbag.", {"car"}, 2 / 3, 1.0),  # P 1/2, R 1; a handbag is not safety-critical
        ("A bench.", {"bench"}, 1.0, 0.0),  # right, but no safety-critical claim: nothing to verify there
        ("Vehicles are ahead.", {"car"}, 2 / 3, 1.0),  # P 1, R 0.5: true but vague
        ("Vehicles are ahead.", {"person"}, 0.0, 0.0),
        ("Vehicles are ahead.", {"car", "bus"}, 0.4, 1.0),  # P 1, R 0.5 / 2
        ("A van is ahead.", {"truck"}, 1.0, 1.0),  # a detector may call it a truck
        ("A van is ahead.", {"person"}, 0.0, 0.0),
        ("A car, and the red vehicle brakes.", {"car"}, 1.0, 1.0),  # no second claim
        ("A car, and the red vehicle brakes.", {"bus"}, 0.0, 0.0),  # nor a second chance
        ("A cyclist.", {"person"}, 2 / 3, 0.5),  # names person and bicycle
        ("A van and a tram.", {"bus"}, 1.0, 1.0),  # both are borne out by the bus, which is found once
        ("A van and a tram.", {"bus", "car"}, 1.0, 1.0),
        ("A car, a truck, a bus and a train.", {"car"}, 0.4, 0.25),
    ],
)  # fmt: skip
def test_objects_and_hallucination(score, text, detected, f1, hallucination):
    found = score(text, detected)
    assert (found.object, found.hallucination) == pytest.approx((f1, hallucination))


def test_hallucination_over_all_objects(score, parser):
    everything = parser.vocabulary.required | parser.vocabulary.optional
    assert score("A car and a handbag.", {"car"}, hallucination_over=everything).hallucination == 0.5


@pytest.mark.parametrize(
    "text", ["", "   ", "...", "The road is wide.", "There are no cars.", "The ego vehicle moves on."]
)
@pytest.mark.parametrize("detected", [set(), {"car"}])
def test_a_text_without_objects_is_unverified_and_gets_no_free_points(score, text, detected):
    found = score(text, detected)
    assert found.unverified and (found.object, found.hallucination, found.claims) == (0, 0, 0)
    if not text.strip("."):
        assert found.reward == 0


def test_time_and_detail_are_capped_at_the_reference(score):
    many = "Then, after that, a red, wet, wide, dark street; finally it turns, stops, slows, brakes and accelerates."
    assert (score(many, set()).temporal, score(many, set()).detail) == (1.0, 1.0)


def test_few_words_do_not_buy_density_and_repeating_does_not_either(score):
    assert score("Then turn.", set()).temporal == pytest.approx(0.5)  # 2 / 13 against 4 / 13, not 2 / 2
    assert score("Then, then, then, then, then.", set()).temporal == pytest.approx(0.5)
    long = "It turns and stops. " + "The road is wide here. " * 8  # 44 words, 2 of time
    assert score(long, set()).temporal == pytest.approx((2 / 44) / (4 / 13))


def test_a_reference_without_words_of_time_or_detail_gives_nothing_and_is_told(score):
    found = score(TEXT, {"car"}, reference="A car is there.")
    assert (found.temporal, found.detail) == (0, 0) and found.no_reference == ("temporal", "detail")
    assert score(TEXT, {"car"}, reference="").no_reference == ("temporal", "detail")
    assert score(TEXT, {"car"}).no_reference == ()


def test_weights(score):
    assert dataclasses.astuple(Weights()) == (0.4, 0.25, 0.2, 0.15)
    found = score(TEXT, {"car", "truck", "person"}, weights=Weights(0, 0, 0, 2))
    assert found.reward == pytest.approx(2 * 0.5)
    for bad in ([0, 0, 0, 0], [1, 1, 1, -1], [1, 1, 1, float("nan")]):
        with pytest.raises(ValueError, match="four numbers of at least 0"):
            Weights(*bad)


def test_the_reward_tells_good_from_bad(reward):
    """Not constant, and in the right order: a GRPO group of equal rewards teaches nothing."""
    ranked = [
        "Then a white car, a red truck and a person turn, and finally stop.",
        "Then a car and a truck turn.",
        "Vehicles are there.",
        "A train and a boat are there.",
        "",
    ]
    values = reward(prompts=[""] * 5, completions=ranked, video=["a"] * 5, reference=[REFERENCE] * 5)
    assert values == sorted(values, reverse=True) and len(set(values)) >= 4
    assert statistics.pstdev(values) > 0.2 and values[0] > 0.9 and values[-1] == 0


def test_the_same_text_is_worth_something_else_for_another_video(reward):
    values = reward(prompts=[""] * 3, completions=["A car."] * 3, video=["a", "b", "none"], reference=[REFERENCE] * 3)
    assert values == pytest.approx([0.4 * 0.5 + 0.15, 0.4 + 0.15, 0.0])


def test_what_trl_gives_and_gets(reward):
    logged = {}
    completions = [
        [{"role": "assistant", "content": TEXT}],
        [{"role": "assistant", "content": [{"type": "text", "text": "The road is wide."}]}],
    ]
    columns = {"video": ["a", "a"], "reference": [REFERENCE] * 2, "mode": ["detailed", "concise"]}
    values = reward(
        prompts=[[], []], completions=completions, completion_ids=[[1], [2]], trainer_state=None, extra=[1, 2],
        log_metric=lambda name, value: logged.update({name: value}), log_extra=print, **columns,
    )  # fmt: skip
    assert values[0] == pytest.approx(0.46) and all(type(value) is float for value in values)
    assert reward.__name__ == "physics" and len(reward.last_terms) == 2
    assert [item.reward for item in reward.last_terms] == values
    assert (reward.scored, reward.unverified) == (2, 1)
    assert logged["physics/object"] == pytest.approx(0.2) and logged["physics/unverified"] == 0.5
    assert logged["physics/detailed/object"] == pytest.approx(0.4) and logged["physics/concise/unverified"] == 1
    assert logged["physics/no_reference"] == 0
    assert dataclasses.asdict(reward.last_terms[0])["false_claims"] == ("bus",)


def test_pictures_stand_in_for_videos(reward):
    assert reward(prompts=[""], completions=["A car."], image=["b"], reference=[REFERENCE])[0] == pytest.approx(0.55)
    both = {
        "video": [None, "b"],
        "image": ["b", None],
        "mode": [None, "concise"],
    }  # as a file with rows of both kinds gives them
    logged = {}
    found = reward(
        prompts=["", ""],
        completions=["A car."] * 2,
        reference=[REFERENCE] * 2,
        log_metric=lambda name, value: logged.update({name: value}),
        **both,
    )
    assert found == pytest.approx([0.55, 0.55])
    assert "physics/concise/words" in logged and not any("None" in name for name in logged)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"video": ["x.mp4"], "reference": ["r"]}, r"no detections for 'x\.mp4' in .*d\.jsonl.*tools/cache_detections\.py"),
        ({"reference": ["r"]}, "needs the column 'video' or 'image'"),
        ({"video": ["a"]}, "needs the column 'reference'"),
        ({"video": [None], "reference": ["r"]}, "needs a text in 'video' or 'image', completion 0 has None"),
        ({"video": ["a"], "reference": [None]}, "needs a text in 'reference'"),
    ],
)  # fmt: skip
def test_missing_columns_and_videos_are_errors(reward, columns, told):
    with pytest.raises(ValueError, match=told):
        reward(prompts=[""], completions=["A car."], **columns)


def test_rows_that_cannot_be_scored_are_told_beforehand(reward):
    columns = {
        "id": ["1", "2", "3", "4", "5", "6", "7"],
        "video": ["a", "x.mp4", "a", "a", None, None, None],
        "image": [None, None, None, None, "b", ["a", "b"], None],
        "reference": ["r", "r", "", "r", "r", "r", "r"],
        "frames": [[0], [0], [0], [1, 4], None, None, None],
    }
    found = reward.check(**columns)
    assert found[0] is None and found[4] is None
    assert "no detections for 'x.mp4'" in found[1] and "has no answer to be the reference" in found[2]
    assert "of 1 frames (0), this run takes 2 (1, 4). Give --num_frames 1, or make a new cache" in found[3]
    assert found[5] == found[6] == "the row needs a video or one image"


def test_a_replaced_video_is_reported_beforehand(reward, tmp_path):
    """Another file under the old name: its detections would score what nobody sees."""
    video = tmp_path / "a.mp4"
    video.write_bytes(b"8 bytes.")
    sample = Sample("1", (), (), str(video), None, {}, "rows.jsonl:1")
    row = {"id": ["1"], "video": ["a"], "reference": ["r"], "frames": [[0]], "sample": [sample]}
    now = dataclasses.asdict(FileIdentity.of(sample, 1, content=True))

    def check(**file):
        object.__setattr__(reward.cache.entry("a"), "file", now | file)
        [problem] = reward.check(**row)
        return problem

    assert check() is None and check(times="copied") is None
    problem = check(bytes=7)
    assert "'a' is not what was looked at for" in problem
    assert "7 bytes then, 1 of 8 bytes now. Run python tools/" in problem
    assert "other content" in check(times="t", content="c")
    video.unlink()
    assert "cannot be read: No such file" in check()


def test_a_bad_configuration_is_told_when_the_reward_is_built(tmp_path, spacy_model):
    cache = detections(tmp_path / "d.jsonl", a=["car"])
    with pytest.raises(ValueError, match=r"takes 4 numbers .*, got 2"):
        build_reward("physics", PhysicsConfig([cache], physics_weights=[1, 2], spacy_model=spacy_model))
    with pytest.raises(ValueError, match="no such detection cache"):
        build_reward("physics", PhysicsConfig([str(tmp_path / "none")], spacy_model=spacy_model))
    strange = detections(tmp_path / "s.jsonl", a=["car", "rider"])
    with pytest.raises(ValueError, match=r"s\.jsonl: 'a': the detector's class 'rider' is not in the vocabulary"):
        build_reward("physics", PhysicsConfig([strange], spacy_model=spacy_model))


def test_a_stage_adds_the_flags_of_the_chosen_rewards(tmp_path):
    assert chosen_rewards(["--model", "m", "--rewards", "physics", "--x", "1"]) == ["physics"]
    assert chosen_rewards([], default=["physics"]) == ["physics"]
    with pytest.raises(ValueError, match="names physics twice"):
        chosen_rewards(["--rewards", "physics", "physics"])
    with pytest.raises(ValueError, match=r"unknown reward 'phisics'.*Did you mean physics"):
        config_class("phisics")
    parser = CommandParser(prog="x")
    add_dataclass(parser, config_class("physics"))
    namespace: argparse.Namespace = parser.parse_args(
        ["--physics_detections", "a", "b", "--physics_weights", "1", "0", "0", "1"]
    )
    config = from_namespace(PhysicsConfig, namespace)
    assert config.physics_detections == ["a", "b"] and config.physics_weights == [1, 0, 0, 1]


def test_flags_of_a_reward_begin_with_its_name():
    """But for those that other tools have under the same name: the spaCy model, and the judge's."""
    shared = {item.name for item in dataclasses.fields(JudgeConfig)} | {"spacy_model"}
    for name in REWARDS:
        own = {item.name for item in dataclasses.fields(config_class(name))} - shared
        assert own and all(flag.startswith(f"{name}_") for flag in own), own


def test_texts_of_completions():
    assert completion_text("a b") == "a b"
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]) == "a b"
    assert completion_text([{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]).strip() == "a"  # fmt: skip
    assert completion_text([]) == ""
