"""The canvas of a synthetic scene: its camera, its light, and the sky and ground behind everything."""

import numpy as np
from PIL import Image, ImageDraw

from drive_vlm.builders.synthetic.scene import Camera, Scene

_SKY = {  # (time, weather) -> colour at the top and at the horizon
    ("day", "clear"): ((58, 128, 222), (214, 232, 246)),
    ("day", "rain"): ((118, 126, 136), (176, 182, 186)),
    ("night", "clear"): ((4, 7, 22), (30, 36, 74)),
    ("night", "rain"): ((16, 17, 22), (46, 46, 54)),
}
SCALE = 2  # supersampling


class Painter:
    """A canvas with the camera and the light of one scene; colours are RGB, or RGBA to blend."""

    def __init__(self, scene: Scene) -> None:
        height, width = scene.size
        self.scene, self.night, self.rain = scene, scene.time == "night", scene.weather == "rain"
        self.camera = Camera.of(scene.size, SCALE)
        self.size = (width * SCALE, height * SCALE)
        self.image = Image.fromarray(_backdrop(scene, self.camera, self.size))
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def tone(self, color: tuple[int, ...], lit: float = 0.3) -> tuple[int, ...]:
        """`color` in this scene's light; at night a share `lit` of it remains (headlights reach near things)."""
        red, green, blue = (float(channel) for channel in color[:3])
        if self.night:
            red, green, blue = red * lit, green * lit, blue * lit + 8
        if self.rain:
            grey = (red + green + blue) / 3
            red, green, blue = (0.78 * c + 0.2 * grey for c in (red, green, blue))
        return (int(red), int(green), int(min(255, blue)), *color[3:])

    def ground(self, corners: list[tuple[float, float]], color: tuple[int, ...]) -> None:
        """Fill a polygon of ground points (x metres right, z metres ahead)."""
        self.draw.polygon([self.camera.project(x, 0.0, z) for x, z in corners], fill=color)

    def strip(self, left: float, right: float, near: float, far: float, color: tuple[int, ...]) -> None:
        """Fill the ground from x = `left` to `right` and z = `near` to `far` (metres)."""
        self.ground([(left, near), (left, far), (right, far), (right, near)], color)

    def solid(self, corners: list[tuple[float, float, float]], color: tuple[int, ...]) -> None:
        """Fill a polygon of points (x, y above the ground, z) in metres."""
        self.draw.polygon([self.camera.project(*corner) for corner in corners], fill=color)

    def glow(self, x: float, y: float, radius: float, color: tuple[int, ...]) -> None:
        """A soft halo around a lamp at pixel (x, y)."""
        for share, alpha in ((2.4, 40), (1.7, 60)) if self.night else ((1.5, 45),):
            r = radius * share
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=(*color, alpha))

    @property
    def near(self) -> float:
        """Metres to the ground that the lower border of the picture shows, a little less to be safe."""
        return 0.9 * self.camera.focal * self.camera.height / (self.size[1] - self.camera.horizon)


def _backdrop(scene: Scene, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """Sky and ground as two vertical gradients: uint8[H, W, 3]."""
    width, height = size
    top, low = (np.array(c, dtype=np.float32) for c in _SKY[scene.time, scene.weather])
    horizon = int(camera.horizon)
    share = np.linspace(0, 1, horizon, dtype=np.float32)[:, None]
    grass = np.array([92, 138, 70] if scene.time == "day" else [16, 27, 24], dtype=np.float32)
    if scene.weather == "rain":
        grass = 0.6 * grass + 0.4 * grass.mean()
    depth = np.linspace(0.75, 1.1, height - horizon, dtype=np.float32)[:, None]
    rows = np.concatenate([top + (low - top) * share, grass * depth])
    return np.ascontiguousarray(np.broadcast_to(rows.astype(np.uint8)[:, None], (height, width, 3)))
