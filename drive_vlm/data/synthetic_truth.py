"""What a perfect detector of COCO's classes would find in the synthetic world, and the truth of a clip as such classes."""

from collections.abc import Iterable

from drive_vlm.data.synthetic_scene import Scene

_LABELS = {  # class of the world -> COCO labels; COCO has no cone and, of the signs, the stop sign only
    **{"car": ("car",), "truck": ("truck",), "bus": ("bus",)},
    **{"pedestrian": ("person",), "cyclist": ("bicycle", "person")},
    **{"cone": (), "traffic light": ("traffic light",)},
}
COCO_LABELS = ("bicycle", "bus", "car", "person", "stop sign", "traffic light", "truck")  # all that can be found


def coco_labels(name: str, state: str) -> tuple[str, ...]:
    """COCO labels of one object by its class and state: a cyclist is a bicycle and a person, a cone nothing."""
    if name == "traffic sign":
        return ("stop sign",) if state == "stop" else ()
    return _LABELS[name]


def coco_classes(scenes: Iterable[Scene]) -> list[str]:
    """The COCO classes that are in sight in any of the frames, sorted."""
    return sorted(
        {label for scene in scenes for thing in scene.objects for label in coco_labels(thing.name, thing.state)}
    )
