import pytest

from drive_vlm.evaluation.codalm import CLASSES, GENERAL, QUESTIONS, REGION, SUGGESTION, Rated, region_class, score


def test_score_by_hand():
    rated = [
        Rated(GENERAL, "i1", GENERAL, 6), Rated(GENERAL, "i2", GENERAL, 5), Rated(GENERAL, "i3", GENERAL, None),
        Rated(SUGGESTION, "i1", SUGGESTION, 8), Rated(SUGGESTION, "i2", SUGGESTION, 7),
        Rated(REGION, "i1", "car", 9), Rated(REGION, "i1", "truck", 9), Rated(REGION, "i1", "bus", 9), Rated(REGION, "i2", "bollard", 1),
    ]  # fmt: skip
    result = score(rated)
    assert {task: entry.score for task, entry in result.tasks.items()} == {GENERAL: 55, SUGGESTION: 75, REGION: 70}
    assert result.tasks[REGION].score == 10 * (9 + 9 + 9 + 1) / 4  # over regions, not (90 + 10) / 2 over classes
    assert {name: (entry.score, entry.rated) for name, entry in result.region_classes.items()} == {
        "vehicle": (90, 3), "barrier": (10, 1)
    }  # fmt: skip
    assert result.final.score == pytest.approx((55 + 75 + 70) / 3)
    assert result.tasks[GENERAL].unread == 1 and result.final.unread == 1 and result.images == 3
    for entry in (*result.tasks.values(), result.final):
        assert entry.low <= entry.score <= entry.high


def test_interval_draws_images_with_all_their_answers():
    """Answers of one image rise and fall together: the final interval is that of 40 images, not of 120 answers."""
    rated = [
        Rated(task, f"i{i}", "car", 9 if i % 2 else 3) for i in range(40) for task in (GENERAL, SUGGESTION, REGION)
    ]
    result = score(rated)
    width = result.final.high - result.final.low
    task_width = result.tasks[GENERAL].high - result.tasks[GENERAL].low
    assert width == pytest.approx(task_width, rel=0.1)
    assert width == pytest.approx(2 * 1.96 * 30 / 40**0.5, rel=0.1)


def test_a_task_without_ratings_gives_no_final_score():
    result = score([Rated(GENERAL, "i1", GENERAL, 6), Rated(REGION, "i1", "car", None)])
    assert result.final.score is None and result.tasks[GENERAL].low is None
    assert "driving_suggestion, region_perception" in result.note
    assert result.region_classes["vehicle"].unread == 1
    with pytest.raises(ValueError, match="unknown CODA-LM task stage1"):
        score([Rated("stage1", "i", "", 1)])


def test_classes_and_questions():
    assert region_class("traffic_cone") == "traffic_cone" and region_class("suitcace") == "miscellaneous"
    assert region_class("spaceship") == "unknown" and region_class("") == "unknown"
    assert len(CLASSES) == 7 and sum(len(names.split()) for names in CLASSES.values()) == 43
    assert QUESTIONS[GENERAL].startswith("There is an image") and QUESTIONS[GENERAL].endswith("the ego car's behavior.")
    assert "  " not in "".join(QUESTIONS.values()) and "red rectangle" in QUESTIONS[REGION]
