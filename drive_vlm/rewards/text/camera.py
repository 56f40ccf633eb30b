"""Which vehicle of a text carries the camera: "a car" may be the ego vehicle, which no frame shows.

Covered: "filmed from a car", "from inside a moving car", "through the windshield of a car", "from a car's dashboard", "the
perspective of a car", "a camera mounted on a car", "a car's dashcam", "a car with a dashcam", "the car recording the scene", "we
are in a car", "the interior of a car". Not covered: "the video shows a car driving" may be any car.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokens import Token

_CAMERAS = {"camera", "dashcam", "cam", "gopro", "camcorder", "webcam"}
_PERSPECTIVES = {"perspective", "viewpoint", "vantage", "pov", "standpoint"}
_FILMS = _CAMERAS | _PERSPECTIVES | {"video", "footage", "clip", "scene", "view", "recording", "image", "shot", "film", "frame", "picture", "point", "sequence", "photo", "photograph"}  # fmt: skip
_FILM = {"film", "record", "shoot", "capture", "videotape"}
_LOOK = {"see", "view", "observe", "watch", "take"}
_FIX = {"mount", "attach", "place", "fix", "position", "install", "fit", "locate", "set", "sit", "put", "affix"}
# Seen from inside only.
_INTERIORS = {"interior", "dashboard", "dash", "cockpit", "cabin"}
_PARTS = _INTERIORS | {"inside", "front", "seat", "windshield", "windscreen", "window", "hood", "bonnet", "roof", "top", "side", "mirror", "back", "rear", "driver", "passenger"}  # fmt: skip
_FROM = {"from", "inside", "within", "aboard", "through", "out", "behind", "of", "in", "on", "by", "via"}
_IN = {"in", "inside", "within", "aboard"}
_EQUIPPED = {"equipped", "fitted", "outfitted"}
_OBSERVERS = {
    "we",
    "i",
    "you",
    "viewer",
    "observer",
    "cameraman",
    "cameraperson",
    "operator",
    "filmer",
    "narrator",
} | _CAMERAS
_DRIVE = {"be", "drive", "ride", "sit", "travel", "move", "go"}


def carries_camera(noun: "Token") -> bool:
    """Whether the text says that it looks out of the vehicle `noun`."""
    return _films(noun) or _is_inside(noun) or _is_driven_by_camera(noun) or looks_from(noun)


def _is_driven_by_camera(noun: "Token") -> bool:
    """ "The perspective of someone driving a car"."""
    verb = noun.head
    return noun.dep_ == "dobj" and verb.lemma_ in _DRIVE and verb.dep_ == "acl" and looks_from(verb.head)


def _films(noun: "Token") -> bool:
    """ "A car's dashcam", "a car with a dashcam", "a car equipped with a camera", "the car filming the scene"."""
    behind = noun.doc[noun.i + 1 : noun.i + 7]
    if len(behind) > 2 and behind[0].lower_ in _EQUIPPED and any(word.lower_ in _CAMERAS for word in behind):
        return True
    if noun.dep_ == "poss" and noun.head.lemma_ in _CAMERAS | _PERSPECTIVES | _INTERIORS | {"point"}:
        return True
    for word in noun.children:
        if word.dep_ == "prep" and word.lower_ == "with" and _has_camera(word):
            return True
        if word.dep_ not in ("acl", "relcl"):
            continue
        if word.lemma_ in _FILM and not any(child.dep_ == "auxpass" for child in word.children):
            return True
        elif any(child.dep_ == "prep" and child.lower_ in ("from", "in", "on") for child in word.children):
            # "the car from which the video is shot"
            return word.lemma_ in _FILM | _FIX and any(child.lemma_ in _FILMS for child in word.children)
    return False


def _has_camera(preposition: "Token") -> bool:
    return any(word.lemma_ in _CAMERAS for word in preposition.children)


def _is_inside(noun: "Token") -> bool:
    """ "We are riding in a car", "the interior of a car", "the hood of a car at the bottom of the frame"."""
    if noun.dep_ == "poss" and noun.head.lemma_ in ("hood", "bonnet"):
        return _at_the_edge(noun)
    if noun.dep_ != "pobj":
        return False
    preposition, owner = noun.head, noun.head.head
    if preposition.lower_ == "of":
        return owner.lemma_ in _INTERIORS or (owner.lemma_ in ("hood", "bonnet") and _at_the_edge(noun))
    subjects = {word.lemma_.lower() for word in owner.children if word.dep_ == "nsubj"}
    return preposition.lower_ in _IN and owner.lemma_ in _DRIVE and bool(subjects & _OBSERVERS)


def _at_the_edge(noun: "Token") -> bool:
    return any(word.lower_ in ("bottom", "foreground", "lower") for word in noun.sent)


def looks_from(noun: "Token") -> bool:
    """Climbs from a vehicle (or from a person, "the perspective of a cyclist") to what looks out of it, through its parts: "filmed from the driver's seat of a car"."""
    word, through = noun, ""
    while word.head.i != word.i:
        head = word.head
        if word.dep_ == "poss" and head.lemma_ in _PARTS:
            word = head
        elif (
            word.dep_ in ("pobj", "pcomp", "prep")
            and head.lower_ in _FROM | {"to", "onto", "perspective"}
            and head.tag_ == "IN"
        ):
            # "From inside a car": one preposition hangs on the other.
            through = f"{through} {head.lower_}"
            word = head
        elif word.dep_ == "prep":
            through = f"{through} {word.lower_}"
            found = _looks(head, through.split())
            if found or head.lemma_ not in _PARTS | {"that"}:
                return found
            word, through = head, ""
        elif word.dep_ in ("attr", "appos", "conj") and word.lower_ == "that":
            return any(child.lemma_ in _FILMS for child in head.children)
        else:
            return False
    return False


def _looks(word: "Token", through: list[str]) -> bool:
    """Whether `word` is a camera or a film, or a verb of filming, that has the vehicle behind the prepositions `through`."""
    outwards = bool({"from", "through", "out"} & set(through))
    # "The point of view of a car"
    of_view = word.lemma_ == "view" and word.dep_ == "pobj" and word.head.head.lemma_ == "point"
    if word.lemma_ in _PERSPECTIVES or of_view or (word.lemma_ == "point" and "of" in through and _has_view(word)):
        return True
    if word.lemma_ in _CAMERAS:
        return True
    if word.lemma_ in _FILMS:
        return outwards or bool({"inside", "within"} & set(through)) or (word.lemma_ == "view" and _is_own_view(word))
    if word.lemma_ in _FIX:
        return _subject_lemma(word) in _CAMERAS
    if word.lemma_ in _FILM:
        return outwards or ("by" not in through and _subject_lemma(word) in _FILMS and bool(_IN & set(through)))
    if word.lemma_ in _LOOK and outwards:
        # "A bag is taken from a car" is an event.
        subject = _subject_lemma(word)
        return word.lemma_ != "take" or subject in _FILMS or (not subject and word.tag_ == "VBN")
    return word.lemma_ in ("come", "look", "show", "be") and outwards and _subject_lemma(word) in _FILMS | _OBSERVERS


def _has_view(point: "Token") -> bool:
    return any(child.lemma_ == "view" for word in point.children for child in word.children)


def _is_own_view(view: "Token") -> bool:
    """ "A first-person view of a car", "the dashcam view of a car"."""
    named = {word.lower_ for word in view.lefts} | {word.lower_ for child in view.lefts for word in child.lefts}
    return bool(named & {"first", "dashcam", "dashboard", "pov", "onboard", "cockpit"})


def _subject_lemma(verb: "Token") -> str:
    found = next((word for word in verb.children if word.dep_ in ("nsubj", "nsubjpass")), None)
    if found is None and verb.dep_ in ("acl", "relcl"):
        found = verb.head
    return "" if found is None else found.lemma_.lower()
