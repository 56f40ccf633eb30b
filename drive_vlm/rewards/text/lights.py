"""Which "light" of a text is a traffic light: what turns green, and is no lamp of a vehicle."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokens import Token

    from drive_vlm.rewards.text.vocabulary import Vocabulary


def is_coloured(noun: "Token", vocabulary: "Vocabulary") -> bool:
    """ "The light turns green", "the lights have changed from red to green"."""
    if noun.dep_ not in ("nsubj", "nsubjpass"):
        return False
    said = [word for word in noun.head.rights if word.i > noun.i]
    for word in said:  # grows: what follows "from", "to" and "and"
        said += [child for child in word.children if word.lower_ in ("from", "to") or child.dep_ == "conj"]
    return any(word.lower_ in vocabulary.colours for word in said)


def is_lamp(noun: "Token", vocabulary: "Vocabulary") -> bool:
    """A light of a vehicle: "its red lights", "the lights of the car", "a bus with red lights", "the truck has green lights"."""

    def of_vehicle(word: "Token") -> bool:
        term = vocabulary.objects.get(word.lemma_)
        return term is not None and bool(term.classes & vocabulary.lamp_bearers)

    if any(word.dep_ == "poss" and (of_vehicle(word) or word.tag_ == "PRP$") for word in noun.children):
        return True
    places = [word for word in noun.children if word.lower_ in ("of", "on")]
    if any(of_vehicle(word) for place in places for word in place.children if word.dep_ == "pobj"):
        return True
    if noun.dep_ == "pobj" and noun.head.lower_ == "with":
        return of_vehicle(noun.head.head)
    if noun.dep_ == "dobj" and noun.tag_ == "NNS":  # "the car has a green light" speaks of one that it waits for
        return any(of_vehicle(word) for word in noun.head.children if word.dep_ == "nsubj")
    return False
