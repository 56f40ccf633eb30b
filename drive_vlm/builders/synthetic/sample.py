"""Draws synthetic scenes at random: the attributes first, as evenly as the rules of the road allow, then the world."""

from dataclasses import replace

import numpy as np

from drive_vlm.builders.synthetic.scene import LANE_WIDTH, VEHICLES, Scene, SceneObject, finish

VEHICLE_COLORS = ("red", "blue", "green", "yellow", "white")
CLOTHES = {"pedestrian": ("orange", "purple", "pink"), "cyclist": ("lime", "cyan"), "cone": ("orange",)}
# why the ego vehicle goes on or stops -> share of the scenes
_CAUSES = {
    **{"follow": 0.16, "clear": 0.13, "green": 0.18},
    **{"light": 0.14, "car": 0.09, "person": 0.14, "rider": 0.06, "cone": 0.05, "sign": 0.05},
}
# cause -> what the traffic light may show; any other cause allows all
_LIGHTS = {
    **{"clear": ("none",), "sign": ("none",), "green": ("green",)},
    **{"light": ("red", "yellow"), "follow": ("none", "green")},
}
# what decides about a turn to one side: three permits, then three obstacles -> share
_SIDES = {"turning": 0.22, "turn lane": 0.08, "arrow": 0.1, "occupied": 0.45, "none": 0.06, "solid": 0.08}


def make_scene(seed: int, index: int, size: tuple[int, int] = (224, 224)) -> Scene:
    """The scene number `index` of the world `seed`; `size` is (height, width). A pure function of its arguments.

    Raises ValueError for a picture smaller than 32 pixels on a side.
    """
    rng = np.random.default_rng([seed, index, 0])
    cause = pick(rng, _CAUSES)
    name = f"scene-{seed}-{index:06d}"
    return finish(sample(rng, cause, seed, index, name, size))


def sample(rng: np.random.Generator, cause: str, seed: int, index: int, name: str, size: tuple[int, int]) -> Scene:
    """Draw a scene in which `cause` (a key of _CAUSES) decides; boxes and truth are still missing."""
    if min(size) < 32:
        raise ValueError(f"size {size}: a picture needs at least 32 pixels on each side")
    light = _sample_light(rng, cause)
    sign = "stop" if cause == "sign" else pick(rng, {"none": 0.4, "speed limit": 0.3, "warning": 0.3})
    lead_share = {"follow": 1.0, "car": 1.0, "green": 0.5, "light": 0.5}.get(cause, 0.0)
    has_lead = rng.random() < lead_share
    sides = {"left": pick(rng, _SIDES), "right": pick(rng, _SIDES)}
    if sides["left"] == sides["right"] == "turning":
        sides[pick(rng, {"left": 0.5, "right": 0.5})] = "turn lane"
    for side, kind in sides.items():
        if (kind == "turning" and not has_lead) or (kind == "arrow" and light == "none"):
            sides[side] = "turn lane"
    lanes = {side: kind if kind in ("none", "solid") else "open" for side, kind in sides.items()}
    for side, kind in sides.items():
        if kind == "occupied" and rng.random() < 0.5:
            lanes[side] = "solid"
    scene = Scene(
        seed=seed,
        index=index,
        frame=0,
        id=name,
        group=name,
        size=(size[0], size[1]),
        time=pick(rng, {"day": 0.5, "night": 0.5}),
        weather=pick(rng, {"clear": 0.5, "rain": 0.5}),
        light=light,
        sign=sign,
        left=lanes["left"],
        right=lanes["right"],
        lane_arrow=_which(sides, "turn lane"),
        travelled=0.0,
        objects=(),
    )
    things = _sample_hazard(rng, cause)
    if has_lead:
        state = "braking" if cause in ("car", "light") else "moving"
        distance = rng.uniform(7.0, 9.0) if rng.random() < 0.5 else rng.uniform(12.0, 15.0)
        things.append(_vehicle(rng, rng.uniform(-0.2, 0.2), distance, state, _which(sides, "turning")))
    for side, kind in sides.items():
        if kind == "occupied":
            things += _sample_occupants(rng, side, low=side == "right" and sign != "none")
    if cause != "person" and rng.random() < 0.3:
        side = pick(rng, {"left": 0.5, "right": 0.5})
        x = scene.edge(side) + (0.9 if side == "right" else -0.9)
        things.append(_walker(rng, "pedestrian", x, rng.uniform(11.3, 12.8)))
    if light != "none":
        x = rng.uniform(-1.0, 2.2)
        things.append(SceneObject("traffic light", light, x, 14.0, light, _which(sides, "arrow")))
    if sign != "none":
        color = {"stop": "red", "speed limit": "white", "warning": "yellow"}[sign]
        things.append(SceneObject("traffic sign", color, scene.edge("right") + 0.9, 11.8, sign))
    return replace(scene, objects=tuple(things))


def pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    """A key of `shares`, drawn with a chance proportional to its value."""
    position = rng.random() * sum(shares.values())
    for name, share in shares.items():
        position -= share
        if position < 0:
            return name
    return next(iter(shares))


def _which(sides: dict[str, str], kind: str) -> str:
    """The sides that have `kind`: left, right, both or none."""
    found = [side for side, value in sides.items() if value == kind]
    return "both" if len(found) == 2 else found[0] if found else "none"


def _sample_light(rng: np.random.Generator, cause: str) -> str:
    found = _LIGHTS.get(cause, ("none", "green", "red", "yellow"))
    return pick(rng, dict.fromkeys(found, 1.0)) if len(found) > 1 else found[0]


def _sample_hazard(rng: np.random.Generator, cause: str) -> list[SceneObject]:
    """What blocks the ego lane other than a vehicle."""
    distance = rng.uniform(6.5, 8.5)
    if cause == "cone":
        return [_walker(rng, "cone", x, distance) for x in (-1.0, 0.0, 1.0)]
    name = {"person": "pedestrian", "rider": "cyclist"}.get(cause)
    return [_walker(rng, name, rng.uniform(-0.9, 0.9), distance)] if name else []


def _sample_occupants(rng: np.random.Generator, side: str, low: bool) -> list[SceneObject]:
    """What is on the neighbouring lane; `low` leaves out what would hide the sign behind it."""
    x = LANE_WIDTH if side == "right" else -LANE_WIDTH
    distance = rng.uniform(9.0, 12.5)
    kind = pick(rng, {"vehicle": 0.8, "cyclist": 0.1, "cone": 0.1})
    if kind == "vehicle":
        return [_vehicle(rng, x, distance, "moving", "none", ("car",) if low else VEHICLES)]
    return [_walker(rng, kind, x + offset, distance) for offset in ((-0.8, 0.8) if kind == "cone" else (0.0,))]


def _vehicle(
    rng: np.random.Generator, x: float, z: float, state: str, signal: str, names: tuple[str, ...] = VEHICLES
) -> SceneObject:
    name, color = names[rng.integers(len(names))], VEHICLE_COLORS[rng.integers(len(VEHICLE_COLORS))]
    return SceneObject(name, color, float(x), float(z), state, signal)


def _walker(rng: np.random.Generator, name: str, x: float, z: float) -> SceneObject:
    colors = CLOTHES[name]
    return SceneObject(name, colors[rng.integers(len(colors))], float(x), float(z))
