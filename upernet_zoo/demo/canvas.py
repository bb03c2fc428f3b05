"""The canvas of a scene: chance, camera, light, and shapes that are painted with their labels."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "BICYCLE",
    "BUILDING",
    "BUS",
    "CAR",
    "CIRCLE",
    "FAR",
    "FENCE",
    "FIGURES",
    "MOTORCYCLE",
    "NEAR",
    "PERSON",
    "POLE",
    "RIDER",
    "ROAD",
    "SIDEWALK",
    "SKY",
    "SUPERSAMPLING",
    "TERRAIN",
    "TRAFFIC_LIGHT",
    "TRAFFIC_SIGN",
    "TRAIN",
    "TRUCK",
    "VEGETATION",
    "WALL",
    "Canvas",
    "Color",
    "Place",
    "hsv",
    "mix",
]

# the train ids of labels.get("cityscapes").classes, in that order
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN) = range(10)
(SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(10, 19)

SUPERSAMPLING = 3  # odd, so that there is a middle pixel
FIGURES = 1.6  # people, bikes, poles and signs are drawn this much larger than life: it is a toy town
FAR = 90.0  # meters; the street ends here
NEAR = 1.2  # meters; what is nearer is moved here before it is projected
CIRCLE = [(math.cos(2 * math.pi * i / 18), math.sin(2 * math.pi * i / 18)) for i in range(18)]

Color = Sequence[float]  # RGB, 0..255
Place = Callable[[float, float, float], tuple[float, float, float]]  # (along, across, up) of a thing -> (x, y, z) of the world


def hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """RGB 0..255 of a hue (any number, one turn is 1), saturation and value (clipped to 0..1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return red * 255, green * 255, blue * 255


def mix(a: Color, b: Color, share: float) -> tuple[float, float, float]:
    """`share` of b in a."""
    rest = 1 - share
    return a[0] * rest + b[0] * share, a[1] * rest + b[1] * share, a[2] * rest + b[2] * share


class Canvas:
    """One scene while it is drawn. World: x to the right, y up, z away from the camera, in meters; the middle of the road is x = 0."""

    def __init__(self, seed: int, size: tuple[int, int]):
        self.rng = np.random.default_rng(seed)
        self.height, self.width = size
        self.image = Image.new("RGB", (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING))
        self.labels = Image.new("L", self.image.size, SKY)
        self.opaque = ImageDraw.Draw(self.image)
        self.blended = ImageDraw.Draw(self.image, "RGBA")
        self.marker = ImageDraw.Draw(self.labels)
        # camera
        self.focal = self.uniform(360, 450) * self.height / 256
        self.horizon = self.uniform(0.37, 0.5) * self.height
        self.middle = self.uniform(0.4, 0.6) * self.width
        self.camera_x = self.uniform(-2.2, 2.2)
        self.camera_y = self.uniform(1.8, 3.1)
        self.bend = self.uniform(-1, 1) * 0.0014
        # light: where the sun is (-1 left, 1 right), how much of the light comes from it, and the air
        self.weather = self.pick(("clear", "fair", "overcast", "dusk", "fog", "rain", "snow"), (0.3, 0.3, 0.17, 0.11, 0.04, 0.05, 0.03))
        self.sun = self.uniform(-1, 1)
        self.sun_share = {"clear": 0.45, "fair": 0.38, "dusk": 0.3}.get(self.weather, 0.12)
        self.exposure = {"dusk": 0.66, "rain": 0.78, "fog": 0.95}.get(self.weather, 1.0) * self.uniform(0.88, 1.1)
        self.sight = {"fog": self.uniform(40, 70), "rain": 110, "snow": 90, "overcast": 180, "dusk": 160}.get(self.weather, 300)
        self.sky_colors = self.choose_sky_colors()
        self.haze = self.sky_colors[1]
        # the street's cross-section
        self.road_half = self.uniform(3.6, 5.6)
        self.curb = self.road_half + (self.uniform(1.6, 2.4) if self.chance(0.2) else 0)  # a grass strip between road and sidewalk
        self.lot = self.curb + self.uniform(1.8, 3.8)
        self.taken: list[tuple[float, float, float, float]] = []
        self.things: list[tuple[float, Callable[[], None]]] = []

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, max(low, high)))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence, weights: Sequence[float] | None = None):
        if weights is None:
            return options[int(self.rng.integers(len(options)))]
        edges = np.cumsum(weights)
        return options[int(np.searchsorted(edges / edges[-1], self.rng.random(), side="right"))]

    def paint_color(self) -> tuple[float, float, float]:
        """A color as people paint vehicles and wear clothes: nearly half of them white, gray or black."""
        if self.chance(0.45):
            return hsv(self.uniform(0, 1), self.uniform(0, 0.12), self.pick((0.16, 0.3, 0.5, 0.72, 0.93)))
        return hsv(self.uniform(0, 1), self.uniform(0.5, 0.95), self.uniform(0.4, 0.95))

    def choose_sky_colors(self) -> tuple[Color, Color]:
        """Colors at the top and at the horizon."""
        if self.weather == "dusk":
            return hsv(self.uniform(0.58, 0.76), self.uniform(0.3, 0.6), self.uniform(0.35, 0.6)), hsv(
                self.uniform(-0.02, 0.11), self.uniform(0.3, 0.6), self.uniform(0.75, 0.95)
            )
        if self.weather in ("overcast", "fog", "rain", "snow"):
            gray = self.uniform(0.5, 0.88)
            hue, saturation = self.uniform(0.5, 0.68), self.uniform(0.0, 0.14)
            return hsv(hue, saturation, gray), hsv(hue, saturation * 0.6, min(gray + self.uniform(-0.05, 0.14), 0.95))
        hue = self.uniform(0.52, 0.62)
        return hsv(hue, self.uniform(0.35, 0.75), self.uniform(0.62, 0.95)), hsv(
            hue + self.uniform(-0.03, 0.02), self.uniform(0.06, 0.3), self.uniform(0.84, 0.99)
        )

    def project(self, points) -> np.ndarray:
        """World (..., 3) in meters -> picture (..., 2) in pixels (x, y). The street bends: x grows with the square of z."""
        points = np.asarray(points, dtype=np.float64)
        z = np.maximum(points[..., 2], NEAR)
        scale = self.focal / z
        out = np.empty((*z.shape, 2))
        out[..., 0] = self.middle + (points[..., 0] - self.camera_x + self.bend * z * z) * scale
        out[..., 1] = self.horizon + (self.camera_y - points[..., 1]) * scale
        return out

    def shade(self, color: Color, light: float, z: float) -> tuple[int, int, int]:
        """A surface's color as the camera sees it: lit, exposed, and fading into the haze with distance."""
        clear = math.exp(-z / self.sight) if z > 0 else 1.0
        gain, lost = light * self.exposure * clear, 1 - clear
        (red, green, blue), haze = color, self.haze
        red, green, blue = red * gain + haze[0] * lost, green * gain + haze[1] * lost, blue * gain + haze[2] * lost
        return int(min(red, 255)), int(min(green, 255)), int(min(blue, 255))

    def polygon(self, points, color: Color, label: int | None = None, *, light: float = 1.0, z: float = 0.0, alpha: float = 1.0) -> None:
        """A polygon of picture points. Without a label the label map stays as it is; with alpha below 1 the color is blended."""
        flat = (np.asarray(points, dtype=np.float64) * SUPERSAMPLING).ravel().tolist()
        shaded = self.shade(color, light, z)
        if alpha < 1:
            self.blended.polygon(flat, fill=(*shaded, int(255 * alpha)))
        else:
            self.opaque.polygon(flat, fill=shaded)
        if label is not None:
            self.marker.polygon(flat, fill=label)

    def ellipse(self, x, y, rx, ry, color: Color, label: int | None = None, *, light=1.0, z=0.0, alpha=1.0) -> None:
        """An upright ellipse, from its middle and half axes in picture pixels."""
        box = [v * SUPERSAMPLING for v in (x - rx, y - ry, x + rx, y + ry)]
        shaded = self.shade(color, light, z)
        if alpha < 1:
            self.blended.ellipse(box, fill=(*shaded, int(255 * alpha)))
        else:
            self.opaque.ellipse(box, fill=shaded)
        if label is not None:
            self.marker.ellipse(box, fill=label)

    def limb(self, a, b, wide_a, wide_b, color: Color, label: int | None = None, *, light=1.0, z=0.0) -> None:
        """A bar with round ends between two picture points; widths in pixels."""
        (ax, ay), (bx, by) = a, b
        length = math.hypot(bx - ax, by - ay) or 1.0
        nx, ny = (ay - by) / length / 2, (bx - ax) / length / 2
        corners = [(ax + nx * wide_a, ay + ny * wide_a), (bx + nx * wide_b, by + ny * wide_b)]
        corners += [(bx - nx * wide_b, by - ny * wide_b), (ax - nx * wide_a, ay - ny * wide_a)]
        self.polygon(corners, color, label, light=light, z=z)
        for (x, y), wide in ((a, wide_a), (b, wide_b)):
            self.ellipse(x, y, wide / 2, wide / 2, color, label, light=light, z=z)

    def quad(self, corners, color: Color, label: int | None = None, *, light: float = 1.0, alpha: float = 1.0) -> None:
        """A polygon of world points."""
        corners = np.asarray(corners, dtype=np.float64)
        self.polygon(self.project(corners), color, label, light=light, z=float(corners[:, 2].sum()) / len(corners), alpha=alpha)

    def ground(self, x0, x1, z0, z1, color: Color, label: int | None = None, *, light=1.0, alpha=1.0) -> None:
        """A rectangle on the ground that follows the street's bend."""
        near, far = max(z0, NEAR), max(z1, NEAR + 0.1)
        count = 10 if z1 - z0 > 3 else 2
        points = np.zeros((2 * count, 3))
        points[:count, 0], points[count:, 0] = x0, x1
        points[1 : count - 1, 2] = 10 ** np.linspace(np.log10(near), np.log10(far), count)[1:-1]  # evenly spaced in the picture
        points[0, 2], points[count - 1, 2] = near, far
        points[count:, 2] = points[:count, 2][::-1]
        self.polygon(self.project(points), color, label, light=light, z=(z0 * z1) ** 0.5, alpha=alpha)

    def patches(self, face, a0, a1, b0, b1, colors, *, light: float, alpha: float = 1.0) -> None:
        """Rectangles on a face of four world corners (bottom left, bottom right, top right, top left).

        `a0..a1` and `b0..b1` are arrays of the fractions along the face and up it.
        """
        face = np.asarray(face, dtype=np.float64)
        a, b = np.array([a0, a1, a1, a0]).T[..., None], np.array([b0, b0, b1, b1]).T[..., None]
        low, high = face[0] + (face[1] - face[0]) * a, face[3] + (face[2] - face[3]) * a
        flat = (self.project(low + (high - low) * b) * SUPERSAMPLING).reshape(len(a), 8).tolist()
        z = float(face[:, 2].sum()) / 4
        pen, opacity = (self.blended, (int(255 * alpha),)) if alpha < 1 else (self.opaque, ())
        for points, color in zip(flat, colors):
            pen.polygon(points, fill=self.shade(color, light, z) + opacity)

    def patch(self, face, a0, a1, b0, b1, color: Color, *, light: float, alpha: float = 1.0) -> None:
        """One rectangle on a face; see `patches`."""
        self.patches(face, *(np.array([v]) for v in (a0, a1, b0, b1)), [color], light=light, alpha=alpha)

    def facing(self, normal_x: float) -> float:
        """Light on an upright face: 0 looks at the camera, -1 to the left, 1 to the right."""
        towards_sun = normal_x * self.sun if normal_x else 0.35 * (1 - abs(self.sun))
        return 1.0 - self.sun_share * (0.55 - towards_sun)

    def solid(self, place: Place, bottom, y0: float, top, y1: float, color: Color, label: int) -> dict[str, tuple]:
        """Draw the visible faces of a solid between two rectangles (u0, u1, v0, v1) at heights y0 and y1.

        Returns each visible face ("u0", "u1", "v0", "v1", "top") as its world corners (see `patches`) and its light.
        """
        low = {(i, j): place(bottom[i], bottom[2 + j], y0) for i in (0, 1) for j in (0, 1)}
        high = {(i, j): place(top[i], top[2 + j], y1) for i in (0, 1) for j in (0, 1)}
        ends = {"u0": ((0, 0), (0, 1)), "u1": ((1, 0), (1, 1)), "v0": ((0, 0), (1, 0)), "v1": ((0, 1), (1, 1))}
        center = np.mean(list(low.values()) + list(high.values()), axis=0)
        shown = {}
        for name, (p, q) in ends.items():
            corners = np.array([low[p], low[q], high[q], high[p]])
            outward = corners.mean(0) - center
            normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
            normal *= np.sign(normal @ outward) / (np.linalg.norm(normal) or 1)
            eye = np.array([self.camera_x - self.bend * center[2] ** 2, self.camera_y, 0]) - corners.mean(0)
            if normal @ eye > 0:
                shown[name] = (corners, self.facing(round(normal[0], 1) if abs(normal[0]) > 0.5 else 0), float(corners[:, 2].mean()))
        roof = np.array([high[0, 0], high[1, 0], high[1, 1], high[0, 1]])
        if y1 < self.camera_y:
            shown["top"] = (roof, 1.06, -1.0)  # over all others
        for corners, light, _ in sorted(shown.values(), key=lambda item: -item[2]):
            self.quad(corners, color, label, light=light)
        return {name: (corners, light) for name, (corners, light, _) in shown.items()}

    def shadow(self, x: float, z: float, half_x: float, half_z: float) -> None:
        """A soft shadow on the ground, a little away from the sun."""
        strength = 0.3 + 0.3 * self.sun_share
        for grow in (1.25, 1.0):
            ring = [(x - 0.25 * half_x * self.sun + c * half_x * grow, 0, z + s * half_z * grow) for c, s in CIRCLE]
            self.quad(ring, (18, 18, 26), alpha=strength * 0.7)

    def wheel(self, place: Place, u: float, v: float, radius: float, label: int, hub: Color) -> None:
        """A wheel seen from the side of its vehicle."""
        for share, color in ((1.0, (24, 24, 27)), (0.6, hub), (0.2, (50, 50, 54))):
            self.quad([place(u + radius * share * c, v, radius + radius * share * s) for c, s in CIRCLE], color, label)
