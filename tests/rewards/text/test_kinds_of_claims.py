"""Kinds of sentences that were read wrongly, and 200 generated captions whose truth is known."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from drive_vlm.builders.synthetic.clip import make_clip
from drive_vlm.builders.synthetic.scene import coco_classes
from drive_vlm.builders.synthetic.words import detailed
from drive_vlm.rewards.text.driving_text import ParsedText, TextParser

# Kind -> sentence | claimed | denied. A class is named in one word ("stop_sign"), a general word stands in brackets.
KINDS = {
    "quoted words": """
A "STOP" sign stands at the corner.                             | stop_sign |
A “Stop” sign is ahead of the bus.                              | stop_sign bus |
A 'STOP' sign and a 'traffic signal' control the junction.      | stop_sign traffic_light |
There is no "STOP" sign at this corner.                         | | stop_sign
A red octagon-shaped sign that says "STOP" is on the right.     | stop_sign |
A sign marked STOP is half hidden by a tree.                    | stop_sign |
A “double-decker” bus and two "taxis" wait.                     | bus car |
A "pickup" truck follows a cyclist.                             | person bicycle (pickup_truck) |
The "fire hydrant" is yellow.                                   | fire_hydrant |
The so-called "car" is parked.                                  | car |
The "red light" holds back a tram.                              | traffic_light (tram) |
A "Yield" sign and a "One Way" sign are visible.                | |
""",
    "denials": """
The street is devoid of pedestrians, cyclists, and buses.       | | person bicycle bus
There is a noticeable lack of pedestrian activity.              | | person
The lack of visible people, parked cars, and dogs stands out.   | | person car dog
The absence of traffic lights and stop signs slows the bus.     | bus | traffic_light stop_sign
There is no presence of trucks or motorcycles.                  | | truck motorcycle
There are no visible signs of people, dogs or bicycles.         | | person dog bicycle
The lane is clear of cars and trucks.                           | | car truck
The road is clear of cars and pedestrians walk on the pavement. | person | car
No pedestrian or cyclist activity is seen.                      | | person bicycle
There is no significant truck or pedestrian traffic.            | | truck person
The path, free from dogs and horses, leads to a bench.          | bench | dog horse
The square is empty of people and a bus waits.                  | bus | person
The road is not clear of cars.                                  | car |
There is no lack of pedestrians and no shortage of buses.       | person bus |
The car steers clear of the truck.                              | car truck |
There are few, if any, cyclists.                                | | person bicycle
Without the presence of cars or people, the village looks calm. | | car person
There is some pedestrian activity near the train.               | person train |
Nothing suggests the presence of cyclists or dogs.              | | bicycle dog person
Nothing indicates a traffic light or any trucks.                | | traffic_light truck
There is a bus, but nothing points to the presence of people.   | bus | person
Nothing blocks the car and the truck.                           | car truck |
Absent are any cars, trucks, or pedestrians.                    | | car truck person
Absent from the scene are people and dogs.                      | | person dog
A bus waits; missing are any traffic lights.                    | bus | traffic_light
Absent a traffic light, there are two cars at the corner.       | car | traffic_light
""",
    "a van next to a bus or a truck": """
A van stands next to a bus.                                     | bus (van) |
A white van follows a truck.                                    | truck (van) |
A minivan is behind a bus and a truck.                          | bus truck (minivan) |
An ambulance passes a fire truck.                               | truck (ambulance) |
A pickup is between two buses.                                  | bus (pickup) |
A shuttle stops behind a school bus.                            | bus (shuttle) |
A truck pulls a trailer.                                        | truck (trailer) |
A tractor is in front of a truck.                               | truck (tractor) |
A tram and a city bus cross.                                    | bus (tram) |
A delivery van overtakes a bus, then the van stops.             | bus (delivery_van) |
A pickup truck is ahead, and the truck turns left.              | (pickup_truck) |
There is a van, but there are no people.                        | (van) | person
A bicycle leans on a wall, and the bike is red.                 | bicycle |
""",
    "names, signs and parts": """
A Dunkin' Donuts shop is on the corner.                         | |
Krispy Kreme Donuts and a Pizza Hut are on the left.            | |
A donut shop is next to an Apple store.                         | |
The taxi passes Union Station and a fire station.               | car |
The bus leaves Central Train Station.                           | bus |
A truck's bed is full of gravel.                                | truck |
The bed of the pickup holds a ladder.                           | (pickup) |
The car turns onto Orange Street near the Golden Horse Hotel.   | car |
A Red Bull advertisement and a Bed Bath & Beyond are visible.   | |
A cyclist passes the Children's Hospital.                       | person bicycle |
A sign reads "Bus Lane", another one "Watch for Pedestrians".   | |
A sign reading No Trucks is posted.                             | |
The billboard shows a dog, and a car passes it.                 | car |
A van with "Horse Feed" written on its side waits.              | (van) |
The word "BUS" is painted on the lane.                          | |
A sign warning of pedestrians and a mural of a horse are seen.  | |
A FedEx truck and a Yellow Cab wait.                            | truck car |
""",
    "the camera's car": """
The video is taken from a car on a highway.                     | |
The footage is recorded from inside a moving vehicle.           | |
From the perspective of a car, a cyclist crosses.               | person bicycle |
The camera is mounted on the dashboard of a truck.              | |
A car's dashcam records a bus.                                  | bus |
The view through the windshield of a car shows two trucks.      | truck |
Shot from a car, the clip shows a dog.                          | dog |
We are riding in a car behind a bus.                            | bus |
A car equipped with a dashcam turns left.                       | |
The video is filmed from a car. The car follows a truck.        | truck |
The video is filmed from a car. A red car overtakes.            | car |
The hood of a car is visible at the bottom of the frame.        | |
A person gets out of a car.                                     | person car |
The camera follows a car.                                       | car |
A man takes a suitcase from a car.                              | person suitcase car |
""",
    "things that line a street": """
Parked cars line the street.                                    | car |
Parked taxis line both sides of the road.                       | car |
Trucks line the shoulder, and a bus passes.                     | truck bus |
Parked SUVs line the curb.                                      | car |
A parked jeep lines the street.                                 | car |
Motorcycles line the alley.                                     | motorcycle |
Trees and parked buses line the avenue.                         | bus |
The street is lined with parked cars and bicycles.              | car bicycle |
Parked vehicles line each side.                                 | (vehicle) |
Parked cars flank the road, and people crowd the sidewalk.      | car person |
Cars lining the street are covered with snow.                   | car |
Stop signs line the path.                                       | stop_sign |
A dog park is next to the road.                                 | |
""",
    "makes, models and other words": """
A taxicab waits.                                                | car |
A white Toyota is behind a Honda Civic.                         | car |
a silver honda accord follows a bus.                            | car bus |
A BMW X5 and two Teslas are parked.                             | car |
A Ford F-150 is ahead of a bus.                                 | bus (f-150) |
A Ram 1500 and a GMC Sierra are parked.                         | (ram) (sierra) |
A Ford truck and a BMW motorcycle wait.                         | truck motorcycle |
A Toyota dealership is on Ford Avenue.                          | |
An RV and a crossover are parked.                               | car |
An RV is parked near a truck.                                   | truck (rv) |
Commuters and a family with luggage wait.                       | person (luggage) |
A couple of cars pass an excavator.                             | car (excavator) |
An accord was reached; focus on the suburban road.              | |
A commuter train passes a Harley-Davidson.                      | train motorcycle |
Two teenagers and a firefighter cross.                          | person |
There are no RVs and no Peterbilts.                             | | truck bus car
""",
}


def claims(parsed: ParsedText) -> set[str]:
    return {name.replace(" ", "_") for name in parsed.classes} | {
        f"({term.phrase.replace(' ', '_')})" for term in parsed.groups
    }


def denials(parsed: ParsedText) -> set[str]:
    return {name.replace(" ", "_") for name in parsed.denied}


def cases() -> Iterator[object]:
    for kind, table in KINDS.items():
        lines = table.strip().splitlines()
        assert len(lines) >= 10, kind
        for line in lines:
            sentence, claimed, denied = (part.strip() for part in line.split("|"))
            yield pytest.param(sentence, set(claimed.split()), set(denied.split()), id=f"{kind}: {sentence}")


@pytest.mark.parametrize(("sentence", "claimed", "denied"), list(cases()))
def test_each_kind(parser: TextParser, sentence: str, claimed: set[str], denied: set[str]) -> None:
    [found] = parser.parse([sentence])
    assert (claims(found), denials(found)) == (claimed, denied)


# Plural -> what it claims. No two of them are one thing.
THINGS = {
    "sedans": "car", "taxicabs": "car", "crossovers": "car", "Toyotas": "car", "Honda Civics": "car", "city buses": "bus",
    "dump trucks": "truck", "Peterbilts": "truck", "motorcycles": "motorcycle", "cyclists": "person bicycle", "commuters": "person",
    "families": "person", "teenagers": "person", "dogs": "dog", "horses": "horse", "traffic lights": "traffic_light", "benches": "bench",
    '"STOP" signs': "stop_sign", "fire hydrants": "fire_hydrant", "vans": "(van)", "RVs": "(rv)", "pickup trucks": "(pickup_truck)",
    "excavators": "(excavator)", "trams": "(tram)",
}  # fmt: skip
SEEN = (
    "{Some} {a} are ahead, and {some} {b} follow.",
    "Then {some} {a} pass {some} {b}.",
    "Behind {some} {a}, {some} {b} are parked.",
)
LINED = (
    "Parked {a} line the street.",
    "Several parked {a} line both sides of the road.",
    "The curb is lined with {a}.",
)
DENIED = (
    "The road is devoid of {a}, {b}, and {c}.", "There is a lack of {a} and {b}.", "The absence of {a}, {b} and {c} is notable.",
    "There are no signs of {a}, {b} or {c}.", "The lane is clear of {a} and {b}.", "There is no presence of {a} or {b}.",
    "No {a}, {b}, or {c} are visible.", "Free of {a} and {b}, the road looks calm.", "The scene is without {a} or {b}.",
)  # fmt: skip
EMPTY = (
    "A Dunkin' Donuts and a Pizza Hut are on the left.", 'A sign reads "{A} Only".', "The billboard shows {a}.", "A sign prohibiting {a} is posted.",
    "The video is filmed from a car.", "The camera is mounted on the dashboard of a car.", "The road runs past the White Horse Inn.",
    "The ego vehicle slows down on the wet road.", 'A "No Parking" sign stands there.', "The sky is overcast.",
)  # fmt: skip


def generated(draw: random.Random) -> tuple[str, set[str], set[str]]:
    """A caption from templates, what it claims and what it denies."""
    # A general word next to a class of its own claims nothing, which is another test's matter.
    things = list(THINGS) if draw.random() < 0.5 else [name for name in THINGS if not THINGS[name].startswith("(")]
    names = draw.sample(things, len(things))
    claimed: set[str] = set()
    denied: set[str] = set()
    sentences = []
    for templates, into in ((SEEN, claimed), (LINED, claimed), (DENIED, denied), (EMPTY, None)):
        some = draw.choice(("two", "three", "several", "a few"))
        a, b, c = names.pop(), names.pop(), names.pop()
        template = draw.choice(templates)
        if templates is LINED and a in ("cyclists", "commuters", "families", "teenagers", "dogs", "horses"):
            a = "sedans"
        words = {"a": a, "b": b, "c": c, "A": a.replace('"', "").capitalize(), "some": some, "Some": some.capitalize()}
        sentences.append(template.format_map(words))
        if into is not None:
            into |= {word for key in "abc" if f"{{{key}}}" in template for word in THINGS[words[key]].split()}
    draw.shuffle(sentences)
    return " ".join(sentences), *known(claimed, denied)


def known(claimed: set[str], denied: set[str]) -> tuple[set[str], set[str]]:
    """The reward's own rules: vans and the like next to a named car claim nothing more; what is asserted is not denied."""
    could_be = {
        "(van)": "car truck bus",
        "(rv)": "car truck bus",
        "(pickup_truck)": "car truck",
        "(excavator)": "truck",
        "(tram)": "train bus",
    }
    classes = {name for name in claimed if not name.startswith("(")}
    stand = {name for name in claimed - classes if "car" not in classes or "car" not in could_be[name].split()}
    seen = classes | {name for group in stand for name in could_be[group].split()}
    absent = {name for item in denied for name in could_be.get(item, item).split()}
    return classes | stand, absent - seen


def test_two_hundred_captions_of_known_truth(parser: TextParser) -> None:
    draw = random.Random(11)
    clips = [make_clip(11, index, 6, (64, 64)) for index in range(100)]
    captions = [(detailed(clip), {name.replace(" ", "_") for name in coco_classes(clip)}, set()) for clip in clips] + [
        generated(draw) for _ in range(100)
    ]
    counts: Counter[str] = Counter()
    wrong = []
    for (text, claimed, denied), parsed in zip(captions, parser.parse([text for text, *_ in captions]), strict=True):
        for truth, found in ((claimed, claims(parsed)), (denied, denials(parsed))):
            counts += Counter(right=len(truth & found), false=len(found - truth), missed=len(truth - found))
        if (claimed, denied) != (claims(parsed), denials(parsed)):
            wrong.append((text, claims(parsed) ^ claimed, denials(parsed) ^ denied))
    precision = counts["right"] / (counts["right"] + counts["false"])
    recall = counts["right"] / (counts["right"] + counts["missed"])
    assert counts["right"] > 650
    assert precision > 0.97 and recall > 0.97, (precision, recall, wrong)
