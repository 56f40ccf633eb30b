"""A second reading of ambiguity rows, of their words alone, against the truth file: no code of the builder.

It reads the question's text back into conditions, applies them to every box of the picture, and says what does not hold.
"""

import json
import re
from collections import Counter

COLORS = {"black", "white", "red", "blue", "green", "yellow", "orange", "brown", "silver", "beige", "purple", "pink", "lime", "cyan", "gold", "champagne", "gray"}  # fmt: skip
STATES = {"moving", "braking", "stationary", "parked"}
KINDS = {"car", "truck", "bus", "van", "motorcycle", "bicycle"}
ASKED = (
    (
        r"(?:What color is|Which color does|What is the color of(?: what)?) (?P<d>.+?)(?: have| wear|(?: is)? wearing)?\?",
        "color",
    ),
    (r"(?:What is|In what state of motion is) (?P<d>.+?)(?: doing| doing right now)?\?", "state"),
    (r"(?:Where|In which part|Whereabouts)(?: in| of) the picture is (?P<d>.+?)\?", "side"),
)
NOUNS = KINDS | {"train", "vehicle", "pedestrian", "cyclist", "cone", "traffic light", "traffic sign"}
ORDER = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def synthetic_truth(path):
    """{image: (size, things)} of scenes.jsonl."""
    truth = {}
    for line in path.read_text().splitlines():
        scene = json.loads(line)
        things = []
        for item in scene["objects"]:
            vehicle = item["name"] in ("car", "truck", "bus")
            fact = {"class": "vehicle" if vehicle else item["name"], "color": item["color"], "box": item["box"]}
            if vehicle:
                fact |= {"kind": item["name"], "state": item["state"]}
            if not item["name"].startswith("traffic"):
                fact["lane"] = item["lane"] if item["on_road"] else "none"
            things.append(fact | {"distance": item["distance"], "visible": item["visible"]})
        truth[scene["image"]] = (scene["size"], things)
    return truth


def drivelm_truth(path):
    """{image: (size, things)} of DriveLM's JSON; the pictures of nuScenes have 1600 x 900 pixels."""
    sorts = {"sedan": "car", "suv": "car", "car": "car", "truck": "truck", "bus": "bus", "van": "van"}
    truth = {}
    for scene in json.loads(path.read_text()).values():
        for frame in scene["key_frames"].values():
            for tag, facts in frame["key_object_infos"].items():
                image = frame["image_paths"][tag.split(",")[1]].replace("../nuscenes/", "")
                said = facts["Visual_description"].lower().rstrip(".").replace("-colored", "").replace("golden", "gold")
                thing = {"class": facts["Category"].lower(), "box": facts["2d_bbox"], "visible": 1.0}
                for word in said.split():
                    thing |= {"color": word} if word in COLORS else {"kind": sorts[word]} if word in sorts else {}
                thing |= {"state": facts["Status"].lower()} if facts["Status"] else {}
                if thing["class"] == "traffic element":
                    thing["class"] = "traffic light" if "light" in said else "traffic element"
                truth.setdefault(image, ([900, 1600], []))[1].append(thing)
    return truth


def prepare(size, things, min_side):
    """The things that count, and those that may be meant though they do not: small, hidden, too near to another's middle."""
    height, width = size
    good, poor = [], []
    for thing in sorted(things, key=lambda t: -(t["box"][2] - t["box"][0]) * (t["box"][3] - t["box"][1])):
        x1, y1, x2, y2 = thing["box"]
        thing = {**thing, "middle": (x1 + x2) / 2, "bottom": y2, "area": (x2 - x1) * (y2 - y1)}
        thing["side"] = (
            "left" if 3 * thing["middle"] < width else "middle" if 3 * thing["middle"] < 2 * width else "right"
        )
        same = [other for other in good if other["class"] == thing["class"]]
        enough = x2 - x1 >= min_side and y2 - y1 >= min_side and thing["area"] >= 0.001 * width * height
        if not (enough and thing["visible"] >= 0.5):
            poor.append(thing)
        elif any(overlap(thing["box"], other["box"]) >= 0.5 for other in same):
            continue
        elif any(abs(thing["middle"] - other["middle"]) < 0.02 * width for other in same):
            poor.append(thing)
        else:
            good.append(thing)
    return good, poor


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - max(w, 0) * max(h, 0)
    return max(w, 0) * max(h, 0) / union


def read(text):
    """Conditions of 'the red truck on the left', with "place" for 'nearest' and the like; of 'that one' none."""
    if text == "that one":
        return {}
    want = {}
    for ending, condition in (
        (" in the left lane", ("lane", "left")), (" in our lane", ("lane", "ego")), (" in the right lane", ("lane", "right")),
        (" on the left", ("side", "left")), (" in the middle", ("side", "middle")), (" on the right", ("side", "right")),
    ):  # fmt: skip
        if text.endswith(ending):
            text, want = text.removesuffix(ending), dict([condition])
    if text.endswith(" from the left"):
        text = text.removesuffix(" from the left")
        want["place"] = ORDER.index(text.split()[1])
        text = text.replace(f" {text.split()[1]}", "", 1)
    worn = re.fullmatch(r"(.+) in (\w+)", text)
    if worn and worn[2] in COLORS:
        text, want["color"] = worn[1], worn[2]
    words = text.split()
    assert words[0] == "the", text
    for word in words[1:-1]:
        if word in STATES | COLORS:
            want["state" if word in STATES else "color"] = word
        elif word in ("nearest", "leftmost", "rightmost"):
            want["place"] = word
    noun = (
        words[-1]
        if words[-1] in KINDS | {"vehicle"}
        else " ".join(w for w in words[1:] if w not in {*STATES, *COLORS, "nearest"})
    )
    return want | ({"class": "vehicle", "kind": noun} if noun in KINDS else {"class": noun})


def matches(want, thing):
    """True, False, or None where the truth does not say."""
    answers = [None if thing.get(key) is None else thing[key] == value for key, value in want.items() if key != "place"]
    return False if False in answers else None if None in answers else True


def resolve(name, good, height):
    """The things that a name means, its place included."""
    want = read(name)
    found = sorted((thing for thing in good if matches(want, thing) is not False), key=lambda thing: thing["middle"])
    place = want.get("place")
    if place == "nearest":
        lowest = sorted(found, key=lambda thing: -thing["bottom"])
        clear = len(lowest) < 2 or lowest[0]["bottom"] - lowest[1]["bottom"] >= 0.02 * height
        return lowest[:1] if clear else lowest[:2]
    if place is not None:
        return [found[{"leftmost": 0, "rightmost": -1}.get(place, place)]]
    return found


def stands_out(found):
    """The thing that is meant without a word: three times as large, or alone in our lane and much nearer."""
    first, second = sorted(found, key=lambda thing: -thing["area"])[:2]
    if first["area"] >= 3 * second["area"]:
        return first
    ours = [thing for thing in found if thing.get("lane") == "ego"]
    if len(ours) == 1 and all(thing.get("lane") and thing.get("distance") for thing in found):
        rest = min(thing["distance"] for thing in found if thing is not ours[0])
        return ours[0] if ours[0]["distance"] <= 0.6 * rest else None
    return None


def letters_apart(a, b):
    """Edit distance: letters that are put in, left out or changed."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a):
        row, above = [i + 1], row
        for j, other in enumerate(b):
            row.append(min(above[j] + (letter != other), above[j + 1] + 1, row[j] + 1))
    return row[-1]


def readings_of(kind, asked, good, poor, height):
    """What each of the two readings of 'the bruk' or 'the first car' means; and whether something that does not count may be meant."""
    noun = asked.removeprefix("the ")
    if kind == "spelling":
        assert noun not in NOUNS
        far = sorted((letters_apart(noun, other), other) for other in NOUNS)
        assert far[0][0] == far[1][0] < far[2][0], far
        nouns = [other for _, other in far[:2]]
    else:
        nouns = [noun.removeprefix("first ")] * 2
        assert nouns[0] != noun
    wants = [read(f"the {other}") for other in nouns]
    found = [[thing for thing in good if matches(want, thing) is not False] for want in wants]
    if kind == "intent" and found[0]:
        found = [[min(found[0], key=lambda thing: thing["middle"])], resolve(f"the nearest {nouns[0]}", good, height)]
    return found, any(matches(want, thing) is not False for want in wants for thing in poor)


def _check_two_readings(row, attribute, asked, good, poor, height):
    """One thing a reading, two with two answers where the row is ambiguous, else one answer; the picture must not leave more open."""
    found, doubtful = readings_of(row["type"], asked, good, poor, height)
    things = list({id(thing): thing for part in found for thing in part}.values())
    values = {thing.get(attribute) for thing in things}
    if not things or any(len(part) > 1 for part in found) or None in values:
        yield f"{row['question']}: a reading fits several, or none fits: {found}"
    elif row["ambiguous"]:
        yield from _check_ambiguous(row, attribute, asked, things, values, good, height)
    else:
        target = row["candidates"][row["target"]]["box"] if row["target"] is not None else None
        meant = list(map(float, things[0]["box"])) if len(things) == 1 else None
        if (
            doubtful
            or len(values) != 1
            or row["messages"][1]["content"] != said(attribute, things[0])
            or target != meant
        ):
            yield f"{row['question']}: {len(things)} things with {values}, target {target}"


def said(attribute, thing):
    words = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
    return f"It is {words[thing['side']] if attribute == 'side' else thing[attribute]}."


def names_in(text):
    """The names of a question back."""
    listed = text.removeprefix("Do you mean ").removesuffix("?")
    return re.split(r", | or ", listed)


def check(row, truth, min_side=24):
    """What is wrong with a row, in words; nothing where it holds."""
    size, things = truth[row["image"]]
    good, poor = prepare(size, things, min_side)
    question = row["messages"][0]["content"].removeprefix("<image>\n")
    attribute, asked = next(
        (kind, found["d"]) for pattern, kind in ASKED if (found := re.fullmatch(pattern, question)) is not None
    )
    if row["type"] in ("spelling", "intent"):
        yield from _check_two_readings(row, attribute, asked, good, poor, size[0])
        yield from _check_choices(row, good, poor)
        return
    want = read(asked)
    fit, may_fit = [t for t in good if matches(want, t)], [t for t in good if matches(want, t) is None]
    doubtful = [t for t in poor if matches(want, t) is not False]
    answer = row["messages"][1]["content"]
    values = {thing.get(attribute) for thing in fit}
    if attribute in want or may_fit:
        yield f"{question}: its own answer, or what is not known, decides what it fits"
    if row["ambiguous"]:
        yield from _check_ambiguous(row, attribute, asked, fit, values, good, size[0])
    elif row["type"] in ("twin", "clear"):
        if len(fit) != 1 or doubtful:
            yield f"{question}: fits {len(fit)}, and {len(doubtful)} doubtful"
        elif answer != said(attribute, fit[0]) or row["candidates"][row["target"]]["box"] != list(
            map(float, fit[0]["box"])
        ):
            yield f"{question}: answered {answer} about {row['target']}"
    elif row["type"] == "salient":
        winner = stands_out(fit) if len(fit) > 1 else None
        if winner is None or answer != said(attribute, winner) or row["level"] != 1:
            yield f"{question}: nothing stands out, or {answer} is wrong"
    elif row["type"] == "answer_invariant":
        if len(fit) < 2 or len(values) != 1 or doubtful or answer != said(attribute, fit[0]):
            yield f"{question}: {len(fit)} things with {values}"
    elif (
        row["type"] != "missing_referent"
        or fit
        or doubtful
        or answer != f"There is no {asked.removeprefix('the ')} in the picture."
    ):
        yield f"{question}: {row['type']}, {answer}"
    yield from _check_choices(row, good, poor)


def _check_ambiguous(row, attribute, asked, fit, values, good, height):
    question, back = row["question"], row["messages"][1]["content"]
    if len(fit) < 2 or len(values) < 2 or None in values or stands_out(fit):
        yield f"{question}: fits {len(fit)} with {values}"
        return
    if sorted(map(tuple, (c["box"] for c in row["candidates"]))) != sorted(tuple(map(float, t["box"])) for t in fit):
        yield f"{question}: other candidates"
    if row["level"] != (2 if len(fit) <= 3 else 3):
        yield f"{question}: level {row['level']} with {len(fit)}"
    means = {name: resolve(name, good, height) for name in row["answers"]}
    if any(len(found) != 1 or said(attribute, found[0]) != row["answers"][name] for name, found in means.items()):
        yield f"{question}: a name of {row['answers']} means none or several, or its answer is wrong"
    if len(fit) > 3:
        noun = asked.removeprefix("the ") if asked != "that one" else "thing"
        if not re.fullmatch(rf"There are {len(fit)} .+: do you mean the nearest {noun} or another\?", back):
            yield f"{question}: {back}"
    elif names_in(back) != list(row["answers"]) or sorted(id(t) for f in means.values() for t in f) != sorted(
        map(id, fit)
    ):
        yield f"{question}: {back} does not name its candidates once each"


def _check_choices(row, good, poor):
    choices = row["choices"]
    if choices[row["gold_choice"]] != row["messages"][1]["content"] or len(set(choices)) != 4:
        yield f"{row['id']}: gold choice {row['gold_choice']} of {choices}"
    if Counter(choice.endswith("?") for choice in choices) != {True: 2, False: 2}:
        yield f"{row['id']}: not two questions and two statements: {choices}"
    gone = 0
    for choice in choices:
        if choice.startswith("Do you mean"):
            gone += all(
                matches(read(name), t) is False
                for name in names_in(choice)
                for t in (*good, *poor)
                if "place" not in read(name)
            )
        elif choice.startswith("There are"):
            noun = choice.split("the nearest ")[1].removesuffix(" or another?")
            gone += noun != "thing" and all(matches(read(f"the {noun}"), t) is False for t in (*good, *poor))
    if gone < 1:
        yield f"{row['id']}: no question about what is not there: {choices}"
