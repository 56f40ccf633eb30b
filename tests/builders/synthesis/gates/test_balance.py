"""Gate 6, balance: caps at their limits, histograms by hand, no choice by the order of the file."""

from drive_vlm.builders.synthesis.gates.balance import Caps, check_balance, class_of, histograms, template_of

CAR, LIGHT, LAMP = ("car", (0, 0, 9, 9)), ("traffic light", (0, 0, 9, 9)), ("light", (0, 0, 9, 9))


def kept(rows, caps, seed=0):
    return [row.id for row, outcome in zip(rows, check_balance(rows, caps, seed), strict=True) if not outcome.reason]


def test_classes_and_templates(row):
    asked = row(question="How many cars wait at the traffic light at 5 o'clock?", objects=[CAR, LIGHT, LAMP])
    assert class_of(asked) == "car"
    assert template_of(asked) == "how many * wait at the * at # o clock"
    assert class_of(row(question="Is the traffic light near a car?", objects=[CAR, LIGHT, LAMP])) == "traffic light"
    assert class_of(row(question="Is it wet?", objects=[CAR])) == "(none)"
    assert class_of(row(question="Is the carpet wet?", objects=[CAR])) == "(none)"
    region = row(task="region", question="What is it?", region=("barrier", (0, 0, 9, 9)))
    assert class_of(region) == "barrier" and template_of(region) == "what is it"


def test_each_cap_at_its_limit(row):
    rows = [row(id=f"{i}", image=f"{i // 2}", question=f"Is car {i} near?", objects=[CAR]) for i in range(6)]
    assert len(kept(rows, Caps())) == 6
    for caps, count in ((Caps(class_=4), 4), (Caps(template=3), 3), (Caps(picture=1), 3), (Caps(rows=5), 5)):
        assert len(kept(rows, caps)) == count
    reasons = {outcome.reason for outcome in check_balance(rows, Caps(picture=1))}
    assert reasons == {"", "picture_cap"}


def test_a_row_that_one_cap_takes_out_uses_no_place_of_another(row):
    """Four rows of one picture with a cap of 1 leave room for the others of the class."""
    rows = [row(id=f"a{i}", image="a", question="Is a car near?", objects=[CAR]) for i in range(4)]
    rows += [row(id=f"b{i}", image=f"b{i}", question="Is a car near?", objects=[CAR]) for i in range(2)]
    found = kept(rows, Caps(picture=1, class_=3))
    assert len(found) == 3 and {"b0", "b1"} <= set(found)


def test_rows_without_a_class_and_fixed_questions_have_no_cap_of_their_kind(row):
    rows = [row(id=f"{i}", question="Is it wet?") for i in range(3)]
    assert len(kept(rows, Caps(class_=1))) == 3
    fixed = [row(id=f"{i}", task="general", fixed=True, question="Describe it.") for i in range(3)]
    assert len(kept(fixed, Caps(template=1, class_=1))) == 3 and len(kept(fixed, Caps(rows=1))) == 1


def test_the_choice_depends_on_the_seed_and_not_on_the_order(row):
    rows = [row(id=f"{i}") for i in range(20)]
    first = kept(rows, Caps(rows=5))
    assert sorted(kept(rows[::-1], Caps(rows=5))) == sorted(first)
    assert kept(rows, Caps(rows=5), seed=1) != first != [f"{i}" for i in range(5)]


def test_histograms_by_hand(row):
    rows = [
        row(image="a", kind="count", question="How many cars?", objects=[CAR]),
        row(image="a", question="Is it wet?", objects=[CAR]),
        row(image="b", task="general", fixed=True, question="Describe it."),
    ]
    assert histograms(rows) == {
        "task": {"vqa": 2, "general": 1},
        "kind": {"(none)": 2, "count": 1},
        "class": {"(none)": 2, "car": 1},
        "template": {"(general)": 1, "how many *": 1, "is it wet": 1},
        "rows_a_picture": {"1": 1, "2": 1},
    }
