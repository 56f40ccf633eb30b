"""Truth files as pictures with boxes: the synthetic world, DriveLM's key objects, BDD100K's box labels.

A detection cache becomes pictures in tools/build_ambiguity.py, since rewards/ owns it. Each reader yields a Picture, or a BadRow that
says what is wrong with one; what is not in the published form at all is a ValueError with the file.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from drive_vlm.builders.ambiguity.instances import Instance, Picture, check_boxes
from drive_vlm.builders.drivelm import SKIP, read_frames
from drive_vlm.builders.synthetic.scene import VEHICLES
from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import checked_image_size
from drive_vlm.evaluation.clarify_words import COLORS, KINDS, PEOPLE, STATES
from drive_vlm.store.cache import read_json
from drive_vlm.store.keyed_lines import read_lines

VEHICLE, LIGHT = "vehicle", "traffic light"
_DRIVELM = {"vehicle": VEHICLE, "pedestrian": "pedestrian", "cyclist": "cyclist", "traffic element": "traffic element"}
_LIGHT_COLORS = {"red": "red", "r": "red", "yellow": "yellow", "y": "yellow", "green": "green", "g": "green"}
_ELSEWHERE = "off the road"


def read_synthetic(file: Path, images: Path) -> Iterator[Picture | BadRow]:
    """The single pictures of scenes.jsonl of tools/build_synthetic.py; frames of its clips are left out."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; tools/build_synthetic.py writes scenes.jsonl")
    number = 0
    for line, scene in read_lines(file, "not a scene", "Build the data set again.", torn="the line is cut off"):
        if isinstance(scene, dict) and "video" in scene:
            continue
        where, number = f"{file}:{line}", number + 1
        try:
            size = (int(scene["size"][0]), int(scene["size"][1]))
            things = tuple(_synthetic_thing(thing) for thing in scene["objects"])
            picture = Picture(scene["id"], scene["group"], scene["image"], size, where, things)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{where}: not a scene of tools/build_synthetic.py ({type(error).__name__}: {error})"
            ) from error
        yield _checked(picture, images)
    if not number:
        raise ValueError(f"{file}: holds no picture; build with tools/build_synthetic.py --scenes")


def _synthetic_thing(thing: dict[str, Any]) -> Instance:
    name, state = thing["name"], thing["state"]
    attributes = {"color": thing["color"]}
    if name in VEHICLES:
        attributes |= {"kind": name, "state": state}
    elif name == "traffic sign":
        attributes["kind"] = f"{state} sign"
    if name in VEHICLES or not name.startswith("traffic"):
        attributes["lane"] = thing["lane"] if thing["on_road"] else _ELSEWHERE
    x1, y1, x2, y2 = map(float, thing["box"])
    class_ = VEHICLE if name in VEHICLES else name
    return Instance(class_, (x1, y1, x2, y2), attributes, float(thing["distance"]), float(thing["visible"]))


def _checked(picture: Picture, images: Path) -> Picture | BadRow:
    if not (images / picture.image).is_file():
        way_out = "Is --image_root the right folder? --on_missing skip leaves such pictures out and counts them"
        return BadRow("image_missing", picture.where, f"{images / picture.image} does not exist", way_out)
    try:
        return check_boxes(picture)
    except BadRow as error:
        return error


def sized(
    id: str, group: str, image: str, images: Path, where: str, things: Iterable[Instance | BadRow]
) -> Picture | BadRow:
    """A picture with the size of its file; the first BadRow among its `things` stands for all of it."""
    found: list[Instance] = []
    for thing in things:
        if isinstance(thing, BadRow):
            return thing
        found.append(thing)
    if not (images / image).is_file():
        return _checked(Picture(id, group, image, (0, 0), where, ()), images)
    try:
        size = checked_image_size(str(images / image), where)
    except BadRow as error:
        return error
    return _checked(Picture(id, group, image, size, where, tuple(found)), images)


def read_drivelm(file: Path, images: Path) -> Iterator[Picture | BadRow]:
    """Each camera of each key frame of DriveLM's JSON that has key objects; only these objects are known, not all that is there."""
    content = read_json(file)
    for frame in read_frames(file, images):
        if isinstance(frame, BadRow):
            yield frame
            continue
        objects = content[frame.scene]["key_frames"][frame.id].get("key_object_infos") or {}
        where = f"{file}: scene {frame.scene} frame {frame.id}"
        by_camera: dict[str, list[Instance | BadRow]] = defaultdict(list)
        for tag, facts in objects.items():
            parts = tag.strip("<>").split(",")
            camera = parts[1] if len(parts) == 4 else ""
            if camera not in frame.views:
                problem = f"the key object {tag!r} names no camera of the frame, such as <c1,CAM_FRONT,800.0,450.0>"
                by_camera[""].append(BadRow("bad_object", where, problem, SKIP))
                continue
            by_camera[camera].append(_drivelm_thing(tag, facts, where))
        for camera, things in sorted(by_camera.items()):
            image = frame.views.get(camera, "")
            yield sized(f"{frame.name}_{camera}", frame.scene, image, images, f"{where} {camera}", things)


def _drivelm_thing(tag: str, facts: Any, where: str) -> Instance | BadRow:
    box = box_of(facts.get("2d_bbox")) if isinstance(facts, dict) else None
    category = str(facts.get("Category") or "").lower() if isinstance(facts, dict) else ""
    if box is None or not category:
        problem = f'the key object {tag!r} needs "Category" and "2d_bbox" of four numbers, got {str(facts)[:100]}'
        return BadRow("bad_object", where, problem, SKIP)
    words = re.findall(r"[a-z]+", str(facts.get("Visual_description") or "").lower())
    colors = [COLORS[word] for word in words if word in COLORS]
    attributes = {"color": colors[0]} if len(set(colors)) == 1 else {}
    name = _DRIVELM.get(category, category)
    if name == "traffic element":
        # A sign may be red as well; a light is named by its colour alone.
        name = LIGHT if "light" in words else "traffic sign" if "sign" in words else name
    if name == VEHICLE:
        kinds = {KINDS[word] for word in words if word in KINDS}
        # "pickup truck" names one kind twice, "truck with a car" two.
        if len(kinds) == 1:
            attributes["kind"] = kinds.pop()
    if (state := STATES.get(str(facts.get("Status") or "").lower())) is not None:
        attributes["state"] = state
    return Instance(name, box, attributes)


def box_of(value: Any) -> tuple[float, float, float, float] | None:
    try:
        x1, y1, x2, y2 = map(float, value)
    except (TypeError, ValueError):
        return None
    return x1, y1, x2, y2


def read_bdd100k(file: Path, images: Path) -> Iterator[Picture | BadRow]:
    """The pictures of a BDD100K label file, [{"name", "labels": [{"category", "attributes", "box2d"}]}]; `group` is the video."""
    content = read_json(file)
    if not isinstance(content, list):
        raise ValueError(
            f'{file}: expected BDD100K\'s list [{{"name", "labels"}}], got a {type(content).__name__}; lane and drivable '
            "files have other forms"
        )
    for number, entry in enumerate(content):
        where = f"{file}: picture {number}"
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            yield BadRow("bad_object", where, 'no "name"', SKIP)
            continue
        labels = [label for label in entry.get("labels") or () if isinstance(label, dict) and "poly2d" not in label]
        things = [thing for label in labels if (thing := _bdd_thing(label, f"{where} ({name})")) is not None]
        yield sized(Path(name).stem, entry.get("videoName") or name[:17], name, images, f"{where} ({name})", things)


def _bdd_thing(label: dict[str, Any], where: str) -> Instance | BadRow | None:
    category = str(label.get("category") or "").lower()
    corners = label.get("box2d")
    box = box_of([corners.get(corner) for corner in ("x1", "y1", "x2", "y2")]) if isinstance(corners, dict) else None
    if not category or box is None:
        problem = f'a label needs "category" and "box2d" with x1, y1, x2, y2, got {str(label)[:100]}'
        return BadRow("bad_object", where, problem, SKIP)
    attributes = {}
    light = str((label.get("attributes") or {}).get("trafficLightColor") or "").lower()
    if category == LIGHT and light in _LIGHT_COLORS:
        attributes["color"] = _LIGHT_COLORS[light]
    return labelled(category, box, attributes)


def labelled(
    category: str, box: tuple[float, float, float, float], attributes: dict[str, str], score: float | None = None
) -> Instance:
    """An instance by the word of a label set or a detector: car, person, traffic light ..."""
    if category in KINDS:
        return Instance(VEHICLE, box, {"kind": KINDS[category], **attributes}, score=score)
    if category == "other vehicle":
        return Instance(VEHICLE, box, attributes, score=score)
    return Instance(PEOPLE.get(category, category), box, attributes, score=score)


# Truth files by --source.
SOURCES = {"synthetic": read_synthetic, "drivelm": read_drivelm, "bdd100k": read_bdd100k}
