"""What sentences claim and deny: one line a case. Classes are those of COCO; general words stand in brackets."""

import pytest

from drive_vlm.rewards.text.driving_text import TextParser
from drive_vlm.rewards.text.vocabulary import DEFAULT, load_vocabulary

VEHICLES = "bus car motorcycle train truck"
TRAFFIC = "bus car motorcycle truck"

# sentence | claimed | denied
CASES = """
A car drives ahead.                                        | car |
Two cars and three trucks are parked.                      | car truck |
Buses wait beside taxis.                                   | bus car |
Men, women and children cross the street.                  | person |
Several people stand there.                                | person |
Two SUVs and several lorries approach.                     | car truck |
A pedestrian walks a dog.                                  | person dog |
Policemen direct a motorbike.                              | person motorcycle |
The business district is busy.                             | |
A carpet lies near the cartwheel; busy scarves.            | |
The truckload of trainers was personal.                    | |
A bus stop is on the right.                                | |
The bus stops at the bus stop.                             | bus |
A bus waits at the bus station.                            | bus |
A car park is near the train station.                      | |
A car parks at the curb.                                   | car |
The bus lane and the bike lane are empty.                  | |
A truck driver waves.                                      | |
The car window is open.                                    | |
A fire truck passes.                                       | truck |
A police car follows the ambulance.                        | car |
A police car follows the school bus.                       | car bus |
A fire hydrant stands there.                               | fire hydrant |
A cyclist rides along the road.                            | person bicycle |
A motorcyclist overtakes the van.                          | person motorcycle (van) |
A pedestrian crossing is ahead.                            | |
A pedestrian crossing the street slows the bus.            | person bus |
A zebra crossing is painted on the road.                   | |
The traffic light is red.                                  | traffic light |
The traffic lights are ahead.                              | traffic light |
Light traffic is ahead.                                    | |
The light turns green.                                     | traffic light |
The light has changed from red to green.                   | traffic light |
It stops for a red light.                                  | traffic light |
The light is fading and light rain falls.                  | |
Street lights and brake lights glow.                       | |
An orange cone stands beside a green tree.                 | |
The car is orange.                                         | car |
The ego vehicle bears left.                                | |
Our car follows a truck.                                   | truck |
A stop sign is ahead.                                      | stop sign |
A traffic sign and a speed limit sign stand there.         | |
A traffic cone and a barrier block the lane.               | |
Traffic cones surround a white car.                        | car |
The road is wide and the sky is blue.                      | |
Vehicles are ahead.                                        | (vehicle) |
A car is ahead, and the vehicle brakes.                    | car |
The vehicle moves forward.                                 | |
The white vehicle ahead brakes.                            | (vehicle) |
A van and other vehicles wait.                             | (van) |
Heavy traffic flows.                                       | (traffic) |
An animal stands on the road.                              | (animal) |
A tram passes two bikes.                                   | (tram) (bike) |
A double-decker bus turns.                                 | bus |
There are no pedestrians.                                  | | person
There are no pedestrians crossing.                         | | person
There are no cars or trucks on the road.                   | | car truck
No pedestrians, cyclists or dogs are present.              | | person bicycle dog
The bus turns without any cars behind it.                  | bus | car
There are not any buses.                                   | | bus
There isn't a truck in sight.                              | | truck
There aren't any pedestrians crossing.                     | | person
There aren’t any pedestrians crossing.                     | | person
There isn't a bus waiting at the light.                    | | bus
I don't see any cars moving.                               | | car
The camera doesn't show any trucks approaching.            | | truck
There are cars that aren't moving.                         | car |
There is no one on a bicycle.                              | | bicycle
No one crosses the street with a dog.                      | | dog
No one sits in the car.                                    | car |
No one but a cyclist waits.                                | person bicycle |
Pedestrians are absent.                                    | | person
Pedestrians are not visible.                               | | person
Cyclists cannot be seen.                                   | | person bicycle
The street is free of cars.                                | | car
The road is clear of traffic, with neither cars nor buses. | | {TRAFFIC}
No vehicles are visible.                                   | | {VEHICLES}
There is no sign of a train.                               | | train
There is a complete absence of cars and buses.             | | car bus
There were none of the cars.                               | | car
The scene lacks motorcycles.                               | | motorcycle
I do not see a bicycle.                                    | | bicycle
There do not appear to be any cyclists.                    | | person bicycle
Hardly any cars are on the road.                           | | car
A car-free street.                                         | | car
A bus is seen rather than a truck.                         | bus | truck
Instead of a bus, a train passes.                          | train | bus
A car, not a truck, leads.                                 | car | truck
Potential pedestrians must be watched.                     | | person
A bus can no longer be seen.                               | | bus
There is no bus, but a truck is parked.                    | truck | bus
No car and a bus.                                          | bus | car
There are no cars or trucks and a red bus.                 | bus | car truck
No visible pedestrians in the crosswalk near the bus.      | bus | person
There are no parked cars; a bus is coming.                 | bus | car
There are no cars. Later a car appears.                    | car |
Cars are not moving.                                       | car |
The car does not stop for the pedestrian.                  | car person |
No longer is the bus moving.                               | bus |
Not only cars but also buses drive by.                     | car bus |
There are few cars.                                        | car |
Without stopping, the truck passes the cars.               | truck car |
It is not clear where the bus goes.                        | bus |
No traffic lights, stop signs, or pedestrians are present. | | traffic light stop sign person
There are no visible traffic lights or stop signs here.    | | traffic light stop sign
No other vehicles or pedestrians are near.                 | | {VEHICLES} person
Neither cars nor trucks can be seen, nor is there a bus.   | | car truck bus
Cars move; bicycles are missing.                           | car | bicycle
The street has cars but no buses.                          | car | bus
With no cars in front, the truck turns.                    | truck | car
It is unclear whether a truck is present.                  | | truck
Vehicles such as cars and buses move along.                | car bus |
The road is empty except for a single truck.               | truck |
A sedan's headlights shine.                                | car |
There are no cars, trucks pass by.                         | truck | car
The bus-only lane is empty.                                | |
Few pedestrians walk; no one rides a bicycle.              | person | bicycle
The vehicle's dashboard is visible.                        | |
The school bus's stop sign is extended.                    | bus stop sign |
The car doesn't hit any pedestrians.                       | car | person
Neither vehicle nor pedestrian traffic is present.         | | {VEHICLES} person
A row of parked vehicles lines the street.                 | (vehicle) |
There isn't a car, a bus, or a truck.                      | | car bus truck
The scene doesn't feature a bus, a truck, or a cyclist.    | | bus truck person bicycle
The junction does not have any traffic lights, stop signs, or crosswalks. | | traffic light stop sign
The junction doesn't have traffic lights or stop signs.    | | traffic light stop sign
There is a car, a bus, or a truck.                         | car bus truck |
There is no bus, only a truck.                             | truck | bus
There are no trucks, only cars and buses.                  | car bus | truck
The junction has no traffic light, only a stop sign.       | stop sign | traffic light
No pedestrians, just cyclists.                             | person bicycle |
The road is not occupied by any vehicles.                  | | {VEHICLES}
It doesn't wait for any pedestrians.                       | | person
It doesn't wait for the pedestrian.                        | person |
0 pedestrians and 2 cars are visible.                      | car | person
Cars: yes. Bicycles: no.                                   | car | bicycle
Pedestrians: none visible. Traffic lights: not visible.    | | person traffic light
Not all cars stop.                                         | car |
The rear lights are red.                                   | |
Its rear lights turn red, the hazard lights are yellow.    | |
The car's lights turn red as it brakes.                    | car |
The red lights of the car ahead are visible.               | car |
The light on the bus turns red.                            | bus |
A truck with red lights is ahead.                          | truck |
The car ahead shows red lights.                            | car |
The car ahead has a red light.                             | car traffic light |
The light at the intersection ahead turns yellow.          | traffic light |
The intersection's light turns red.                        | traffic light |
The lights reflect on red cars.                            | car |
An 18-wheeler passes a policewoman.                        | truck person |
Someone walks a dog.                                       | person dog |
NO CARS ARE HERE, a bus is.                                | bus | car
                                                           | |
"""


def cases():
    """The table's lines."""
    for line in CASES.format(VEHICLES=VEHICLES, TRAFFIC=TRAFFIC).strip("\n").splitlines():
        sentence, claimed, denied = (part.strip() for part in line.split("|"))
        yield pytest.param(sentence, claimed, denied, id=sentence or "(empty)")


def classes_of(words: str) -> set[str]:
    """Class names in a cell of the table; two-word names are joined first."""
    for name in ("traffic light", "fire hydrant", "stop sign"):
        words = words.replace(name, name.replace(" ", "_"))
    return {word.replace("_", " ") for word in words.split() if not word.startswith("(")}


@pytest.mark.parametrize(("sentence", "claimed", "denied"), list(cases()))
def test_claims(parser, sentence, claimed, denied):
    [found] = parser.parse([sentence])
    assert found.classes == classes_of(claimed)
    assert {f"({term.phrase})" for term in found.groups} == {word for word in claimed.split() if word.startswith("(")}
    assert found.denied == classes_of(denied)


@pytest.mark.parametrize(
    ("text", "temporal", "details"),
    [
        ("", 0, 0),
        ("The road is there.", 0, 0),
        ("Then the car turns left and stops.", 3, 0),  # then, turn, stop; "left" is no verb
        ("After slowing, the bus finally merges.", 4, 0),  # after, slow, finally, merge
        ("A car stands next to the bus in the next lane.", 0, 0),
        ("Next, it accelerates.", 2, 0),
        ("Then, then, then, then it turns.", 3, 0),  # a word counts twice at most
        ("A red car waits on a wet, narrow street.", 1, 3),
        ("Three parked cars and an orange cone.", 0, 2),
        ("A red car, a red bus and a red truck.", 0, 2),
        ("The multi-lane highway is congested.", 0, 2),
        ("The lane is clear.", 0, 1),
        ("The moving truck is white.", 0, 2),
        ("The truck is moving.", 1, 0),
        ("The white car brakes.", 1, 1),  # as much time as without its colour
        ("The red bus merges.", 1, 1),
        ("The silver truck veers left.", 1, 1),
        ("There are sharp turns.", 0, 1),
        ("A man rides on, a woman is riding.", 2, 0),  # spaCy's lemma of "rides" is "rid"
        ("Stop signs line the street.", 0, 0),
    ],
)  # fmt: skip
def test_words_of_time_and_adjectives(parser, text, temporal, details):
    [found] = parser.parse([text])
    assert (found.temporal, found.details) == (temporal, details)


def test_words_are_counted_without_punctuation(parser):
    assert [item.words for item in parser.parse(["A car, a bus.", "...", "It's 2-lane."])] == [4, 0, 4]


def test_each_distinct_text_is_parsed_once(spacy_model):
    parser = TextParser(spacy_model)
    first = parser.parse(["A car.", "A bus.", "A car."])
    assert parser.parsed_texts == 2 and first[0] is first[2]
    assert parser.parse(["A bus."])[0] is first[1] and parser.parsed_texts == 2
    with pytest.raises(ValueError, match="must be a string, got NoneType"):
        parser.parse(["A car.", None])


def test_several_processes_say_the_same(spacy_model, parser):
    texts = [f"There are {n} cars and no bus." for n in range(130)]
    assert TextParser(spacy_model, processes=2).parse(texts) == parser.parse(texts)


def test_a_model_that_is_not_there_is_named_with_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"'en_none' cannot be loaded; run python -m spacy download en_none"):
        TextParser("en_none")
    with pytest.raises(ValueError, match=r"give its directory \(--spacy_model\)"):
        TextParser(str(tmp_path))


def test_a_model_without_parser_is_refused(tmp_path):
    import spacy

    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="has no tagger"):
        TextParser(str(tmp_path / "blank"))


def test_the_vocabulary_has_all_classes_of_coco_and_many_driving_terms():
    vocabulary = load_vocabulary()
    assert len(vocabulary.required | vocabulary.optional) == 80 and not vocabulary.required & vocabulary.optional
    named = [
        term for term in vocabulary.objects.values() if term.kind != "unseen" and term.classes & vocabulary.required
    ]
    assert len(named) >= 50
    assert vocabulary.safety_critical <= vocabulary.required
    with pytest.raises(ValueError, match=r"d\.jsonl: the detector's class 'rider' is not in the vocabulary"):
        vocabulary.check_labels(["car", "rider"], "d.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("unseen: [road,", "unseen: [car,", "the word 'car' stands twice"),
        ("  van: [car,", "  van: [wagon,", "either names the class 'wagon'"),
        ("safety_critical: [person,", "safety_critical: [rider,", "safety_critical names the class 'rider'"),
        ("temporal: [then,", "temporal: [Then,", "temporal: 'Then' is not a lower-case word"),
        ("temporal: [then,", "temporal: [no,", "temporal: False is not a lower-case word"),
        ("dynamic_verbs:", "dynamic_verb:", "unknown section 'dynamic_verb'. Did you mean dynamic_verbs"),
        ("  colours:", "  colors:", "coloured_light needs class, nouns, colours and not_of"),
        ("back_reference: [vehicle,", "back_reference: [gizmo,", "'gizmo', which is not an object word"),
        ("classes:\n", "classes: [\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_bad_vocabulary_is_told(tmp_path, old, new, told):
    path = tmp_path / "words.yaml"
    content = DEFAULT.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(ValueError, match=told) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="no such vocabulary file"):
        load_vocabulary(tmp_path / "none.yaml")
