"""Street scenes drawn from a seed, with their label maps: the demo's data, made without a download and free of anybody's rights.

A scene is laid out in metres on a ground plane (a street with its pavements, lots on both sides, things that stand or drive on it),
projected through a pinhole camera and painted from far to near. The colour picture is drawn three times as large and averaged down, so its
edges are smooth; the label map takes the middle pixel of each 3x3, so its edges are crisp and lie where the picture's are.
Classes are the 19 of Cityscapes, by train id. As in Cityscapes, what one sees through a fence, a wheel or the crown of a tree
carries the label of the thing in front, and a trunk is vegetation.

Only NumPy and Pillow are used. The same seed gives the same bytes for the same versions of the two.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

# the train ids of labels.get("cityscapes").classes, in that order
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN) = range(10)
(SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(10, 19)

_SUPERSAMPLING = 3  # odd, so that there is a middle pixel
_FIGURES = 1.6  # people, bikes, poles and signs are drawn this much larger than life: it is a toy town
_FAR = 90.0  # metres; the street ends here
_NEAR = 1.2  # metres; what is nearer is moved here before it is projected
_CIRCLE = [(math.cos(2 * math.pi * i / 18), math.sin(2 * math.pi * i / 18)) for i in range(18)]

Colour = Sequence[float]  # RGB, 0..255
Place = Callable[[float, float, float], tuple[float, float, float]]  # (along, across, up) of a thing -> (x, y, z) of the world


def draw(seed: int, size: tuple[int, int] = (256, 512)) -> tuple[np.ndarray, np.ndarray]:
    """Draw the street scene of a seed.

    Args:
        seed: any whole number from 0 up.
        size: (height, width) in pixels. The camera's field of view follows the height.

    Returns:
        The picture, (height, width, 3) uint8 RGB, and its labels, (height, width) uint8 Cityscapes train ids 0..18. Every pixel is
        labelled.
    """
    return _Scene(seed, size).paint()


def _hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """RGB 0..255 of a hue (any number, one turn is 1), saturation and value (clipped to 0..1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return red * 255, green * 255, blue * 255


def _mix(a: Colour, b: Colour, share: float) -> tuple[float, float, float]:
    """`share` of b in a."""
    rest = 1 - share
    return a[0] * rest + b[0] * share, a[1] * rest + b[1] * share, a[2] * rest + b[2] * share


class _Scene:
    """One scene while it is drawn. World: x to the right, y up, z away from the camera, in metres; the middle of the road is x = 0."""

    def __init__(self, seed: int, size: tuple[int, int]):
        self.rng = np.random.default_rng(seed)
        self.height, self.width = size
        self.image = Image.new("RGB", (self.width * _SUPERSAMPLING, self.height * _SUPERSAMPLING))
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
        # light: where the sun stands (-1 left, 1 right), how much of the light comes from it, and the air
        self.weather = self.pick(("clear", "fair", "overcast", "dusk", "fog", "rain", "snow"), (0.3, 0.3, 0.17, 0.11, 0.04, 0.05, 0.03))
        self.sun = self.uniform(-1, 1)
        self.sun_share = {"clear": 0.45, "fair": 0.38, "dusk": 0.3}.get(self.weather, 0.12)
        self.exposure = {"dusk": 0.66, "rain": 0.78, "fog": 0.95}.get(self.weather, 1.0) * self.uniform(0.88, 1.1)
        self.sight = {"fog": self.uniform(40, 70), "rain": 110, "snow": 90, "overcast": 180, "dusk": 160}.get(self.weather, 300)
        self.sky_colours = self._sky_colours()
        self.haze = self.sky_colours[1]
        # the street's cross-section
        self.road_half = self.uniform(3.6, 5.6)
        self.kerb = self.road_half + (self.uniform(1.6, 2.4) if self.chance(0.2) else 0)  # a grass strip between road and pavement
        self.lot = self.kerb + self.uniform(1.8, 3.8)
        self.taken: list[tuple[float, float, float, float]] = []
        self.things: list[tuple[float, Callable[[], None]]] = []

    # --- chance

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, max(low, high)))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence, weights: Sequence[float] | None = None):
        if weights is None:
            return options[int(self.rng.integers(len(options)))]
        edges = np.cumsum(weights)
        return options[int(np.searchsorted(edges / edges[-1], self.rng.random(), side="right"))]

    def paint_colour(self) -> tuple[float, float, float]:
        """A colour as people paint vehicles and wear clothes: nearly half of them white, grey or black."""
        if self.chance(0.45):
            return _hsv(self.uniform(0, 1), self.uniform(0, 0.12), self.pick((0.16, 0.3, 0.5, 0.72, 0.93)))
        return _hsv(self.uniform(0, 1), self.uniform(0.5, 0.95), self.uniform(0.4, 0.95))

    # --- projection, light and drawing

    def project(self, points) -> np.ndarray:
        """World (..., 3) in metres -> picture (..., 2) in pixels (x, y). The street bends: x grows with the square of z."""
        points = np.asarray(points, dtype=np.float64)
        z = np.maximum(points[..., 2], _NEAR)
        scale = self.focal / z
        out = np.empty((*z.shape, 2))
        out[..., 0] = self.middle + (points[..., 0] - self.camera_x + self.bend * z * z) * scale
        out[..., 1] = self.horizon + (self.camera_y - points[..., 1]) * scale
        return out

    def shade(self, colour: Colour, light: float, z: float) -> tuple[int, int, int]:
        """A surface's colour as the camera sees it: lit, exposed, and fading into the haze with distance."""
        clear = math.exp(-z / self.sight) if z > 0 else 1.0
        gain, lost = light * self.exposure * clear, 1 - clear
        (red, green, blue), haze = colour, self.haze
        red, green, blue = red * gain + haze[0] * lost, green * gain + haze[1] * lost, blue * gain + haze[2] * lost
        return int(min(red, 255)), int(min(green, 255)), int(min(blue, 255))

    def polygon(self, points, colour: Colour, label: int | None = None, *, light: float = 1.0, z: float = 0.0, alpha: float = 1.0) -> None:
        """A polygon of picture points. Without a label the label map stays as it is; with alpha below 1 the colour is blended."""
        flat = (np.asarray(points, dtype=np.float64) * _SUPERSAMPLING).ravel().tolist()
        shaded = self.shade(colour, light, z)
        if alpha < 1:
            self.blended.polygon(flat, fill=(*shaded, int(255 * alpha)))
        else:
            self.opaque.polygon(flat, fill=shaded)
        if label is not None:
            self.marker.polygon(flat, fill=label)

    def ellipse(self, x, y, rx, ry, colour: Colour, label: int | None = None, *, light=1.0, z=0.0, alpha=1.0) -> None:
        """An upright ellipse, from its middle and half axes in picture pixels."""
        box = [v * _SUPERSAMPLING for v in (x - rx, y - ry, x + rx, y + ry)]
        shaded = self.shade(colour, light, z)
        if alpha < 1:
            self.blended.ellipse(box, fill=(*shaded, int(255 * alpha)))
        else:
            self.opaque.ellipse(box, fill=shaded)
        if label is not None:
            self.marker.ellipse(box, fill=label)

    def limb(self, a, b, wide_a, wide_b, colour: Colour, label: int | None = None, *, light=1.0, z=0.0) -> None:
        """A bar with round ends between two picture points; widths in pixels."""
        (ax, ay), (bx, by) = a, b
        length = math.hypot(bx - ax, by - ay) or 1.0
        nx, ny = (ay - by) / length / 2, (bx - ax) / length / 2
        corners = [(ax + nx * wide_a, ay + ny * wide_a), (bx + nx * wide_b, by + ny * wide_b)]
        corners += [(bx - nx * wide_b, by - ny * wide_b), (ax - nx * wide_a, ay - ny * wide_a)]
        self.polygon(corners, colour, label, light=light, z=z)
        for (x, y), wide in ((a, wide_a), (b, wide_b)):
            self.ellipse(x, y, wide / 2, wide / 2, colour, label, light=light, z=z)

    def quad(self, corners, colour: Colour, label: int | None = None, *, light: float = 1.0, alpha: float = 1.0) -> None:
        """A polygon of world points."""
        corners = np.asarray(corners, dtype=np.float64)
        self.polygon(self.project(corners), colour, label, light=light, z=float(corners[:, 2].sum()) / len(corners), alpha=alpha)

    def ground(self, x0, x1, z0, z1, colour: Colour, label: int | None = None, *, light=1.0, alpha=1.0) -> None:
        """A rectangle on the ground that follows the street's bend."""
        near, far = max(z0, _NEAR), max(z1, _NEAR + 0.1)
        count = 10 if z1 - z0 > 3 else 2
        points = np.zeros((2 * count, 3))
        points[:count, 0], points[count:, 0] = x0, x1
        points[1 : count - 1, 2] = 10 ** np.linspace(np.log10(near), np.log10(far), count)[1:-1]  # evenly spaced in the picture
        points[0, 2], points[count - 1, 2] = near, far
        points[count:, 2] = points[:count, 2][::-1]
        self.polygon(self.project(points), colour, label, light=light, z=(z0 * z1) ** 0.5, alpha=alpha)

    def patches(self, face, a0, a1, b0, b1, colours, *, light: float, alpha: float = 1.0) -> None:
        """Rectangles on a face of four world corners (bottom left, bottom right, top right, top left).

        `a0..a1` and `b0..b1` are arrays of the fractions along the face and up it.
        """
        face = np.asarray(face, dtype=np.float64)
        a, b = np.array([a0, a1, a1, a0]).T[..., None], np.array([b0, b0, b1, b1]).T[..., None]
        low, high = face[0] + (face[1] - face[0]) * a, face[3] + (face[2] - face[3]) * a
        flat = (self.project(low + (high - low) * b) * _SUPERSAMPLING).reshape(len(a), 8).tolist()
        z = float(face[:, 2].sum()) / 4
        pen, opacity = (self.blended, (int(255 * alpha),)) if alpha < 1 else (self.opaque, ())
        for points, colour in zip(flat, colours):
            pen.polygon(points, fill=self.shade(colour, light, z) + opacity)

    def patch(self, face, a0, a1, b0, b1, colour: Colour, *, light: float, alpha: float = 1.0) -> None:
        """One rectangle on a face; see `patches`."""
        self.patches(face, *(np.array([v]) for v in (a0, a1, b0, b1)), [colour], light=light, alpha=alpha)

    def facing(self, normal_x: float) -> float:
        """Light on an upright face: 0 looks at the camera, -1 to the left, 1 to the right."""
        towards_sun = normal_x * self.sun if normal_x else 0.35 * (1 - abs(self.sun))
        return 1.0 - self.sun_share * (0.55 - towards_sun)

    def solid(self, place: Place, bottom, y0: float, top, y1: float, colour: Colour, label: int) -> dict[str, tuple]:
        """Draw the visible faces of a solid between two rectangles (u0, u1, v0, v1) at heights y0 and y1.

        Returns each visible face ("u0", "u1", "v0", "v1", "top") as its world corners (see `patches`) and its light.
        """
        low = {(i, j): place(bottom[i], bottom[2 + j], y0) for i in (0, 1) for j in (0, 1)}
        high = {(i, j): place(top[i], top[2 + j], y1) for i in (0, 1) for j in (0, 1)}
        ends = {"u0": ((0, 0), (0, 1)), "u1": ((1, 0), (1, 1)), "v0": ((0, 0), (1, 0)), "v1": ((0, 1), (1, 1))}
        centre = np.mean(list(low.values()) + list(high.values()), axis=0)
        shown = {}
        for name, (p, q) in ends.items():
            corners = np.array([low[p], low[q], high[q], high[p]])
            outward = corners.mean(0) - centre
            normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
            normal *= np.sign(normal @ outward) / (np.linalg.norm(normal) or 1)
            eye = np.array([self.camera_x - self.bend * centre[2] ** 2, self.camera_y, 0]) - corners.mean(0)
            if normal @ eye > 0:
                shown[name] = (corners, self.facing(round(normal[0], 1) if abs(normal[0]) > 0.5 else 0), float(corners[:, 2].mean()))
        roof = np.array([high[0, 0], high[1, 0], high[1, 1], high[0, 1]])
        if y1 < self.camera_y:
            shown["top"] = (roof, 1.06, -1.0)  # over all others
        for corners, light, _ in sorted(shown.values(), key=lambda item: -item[2]):
            self.quad(corners, colour, label, light=light)
        return {name: (corners, light) for name, (corners, light, _) in shown.items()}

    def shadow(self, x: float, z: float, half_x: float, half_z: float) -> None:
        """A soft shadow on the ground, a little away from the sun."""
        strength = 0.3 + 0.3 * self.sun_share
        for grow in (1.25, 1.0):
            ring = [(x - 0.25 * half_x * self.sun + c * half_x * grow, 0, z + s * half_z * grow) for c, s in _CIRCLE]
            self.quad(ring, (18, 18, 26), alpha=strength * 0.7)

    def wheel(self, place: Place, u: float, v: float, radius: float, label: int, hub: Colour) -> None:
        """A wheel seen from the side of its vehicle."""
        for share, colour in ((1.0, (24, 24, 27)), (0.6, hub), (0.2, (50, 50, 54))):
            self.quad([place(u + radius * share * c, v, radius + radius * share * s) for c, s in _CIRCLE], colour, label)

    # --- sky and what stands far away

    def _sky_colours(self) -> tuple[Colour, Colour]:
        """Colours at the top and at the horizon."""
        if self.weather == "dusk":
            return _hsv(self.uniform(0.58, 0.76), self.uniform(0.3, 0.6), self.uniform(0.35, 0.6)), _hsv(
                self.uniform(-0.02, 0.11), self.uniform(0.3, 0.6), self.uniform(0.75, 0.95)
            )
        if self.weather in ("overcast", "fog", "rain", "snow"):
            grey = self.uniform(0.5, 0.88)
            hue, saturation = self.uniform(0.5, 0.68), self.uniform(0.0, 0.14)
            return _hsv(hue, saturation, grey), _hsv(hue, saturation * 0.6, min(grey + self.uniform(-0.05, 0.14), 0.95))
        hue = self.uniform(0.52, 0.62)
        return _hsv(hue, self.uniform(0.35, 0.75), self.uniform(0.62, 0.95)), _hsv(
            hue + self.uniform(-0.03, 0.02), self.uniform(0.06, 0.3), self.uniform(0.84, 0.99)
        )

    def sky(self) -> None:
        top, low = (np.array(c) for c in self.sky_colours)
        height, width = int(self.horizon / 2) + 2, (self.width + 1) // 2  # at half size, down to the horizon
        horizon = self.horizon / 2
        share = np.clip(np.arange(height) / horizon, 0, 1)[:, None, None] ** self.uniform(0.7, 1.4)
        sky = np.broadcast_to(top + (low - top) * share, (height, width, 3))
        if self.weather == "fog":
            amount = np.zeros((height, width))
        else:
            amount = self.clouds(height, width)
        lit = _mix((255, 250, 244), low, 0.25) if self.weather not in ("overcast", "rain", "snow") else _mix(low, (255, 255, 255), 0.35)
        sky = sky + (np.array(lit) - sky) * amount[..., None]
        if self.weather in ("clear", "dusk") and self.chance(0.5):
            x, y = self.uniform(0.1, 0.9) * width, self.uniform(0.05, 0.6) * horizon
            distance = np.hypot(np.arange(width)[None] - x, np.arange(height)[:, None] - y) / (self.height / 2)
            glow = np.exp(-((distance / 0.045) ** 2)) + 0.35 * np.exp(-distance / 0.2)
            sky = sky + (np.array((255, 244, 214)) - sky) * np.clip(glow, 0, 1)[..., None]
        picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
        factor = 2 * _SUPERSAMPLING
        self.image.paste(picture.resize((width * factor, height * factor), Image.Resampling.BILINEAR))

    def clouds(self, height: int, width: int) -> np.ndarray:
        """Cover 0..1 of each pixel: smooth noise of four octaves, cut at a height, flattened towards the horizon."""
        noise = np.zeros((height, width))
        for octave in range(4):
            cells = self.rng.random((2 + 3 * 2**octave, 2 + 3 * 2**octave)).astype(np.float32)
            noise += np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
        cover = self.uniform(0.75, 1.25) if self.weather != "fair" else self.uniform(0.6, 0.95)
        return np.clip((noise - cover) * self.uniform(0.8, 2.0), 0, self.uniform(0.5, 0.95))

    def backdrop(self) -> None:
        """Hills or a skyline behind the end of the street."""
        count = 26
        x = np.linspace(-0.05, 1.05, count) * self.width
        if self.chance(0.6):
            base = self.uniform(0.02, 0.09)
            rise = np.cumsum(self.rng.normal(0, 0.012, count))
            y = self.horizon - np.clip(base + rise - rise.mean(), 0.008, 0.2) * self.height
            colour = _hsv(self.uniform(0.2, 0.45), self.uniform(0.15, 0.5), self.uniform(0.3, 0.6))
            points = np.concatenate([np.stack([x, y], -1), [(self.width * 1.1, self.horizon + 2), (-9, self.horizon + 2)]])
            self.polygon(points, colour, VEGETATION, z=0.75 * self.sight * self.uniform(0.4, 1))
        if self.chance(0.6):
            colour = _hsv(self.uniform(0, 1), self.uniform(0, 0.2), self.uniform(0.4, 0.7))
            left = -9.0
            while left < self.width:
                wide, high = self.uniform(0.02, 0.08) * self.width, self.uniform(0.03, 0.17) * self.height
                corners = [(left, self.horizon + 2), (left, self.horizon - high), (left + wide, self.horizon - high)]
                if self.chance(0.75):
                    tone = _mix(colour, (90, 90, 100), self.uniform(0, 0.4))
                    self.polygon([*corners, (left + wide, self.horizon + 2)], tone, BUILDING, z=self.sight * 0.5)
                    self.skyline_windows(left, wide, high, tone)
                left += wide

    def skyline_windows(self, left: float, wide: float, high: float, tone: Colour) -> None:
        step = self.height / 42
        for y in np.arange(self.horizon - high + step / 2, self.horizon, step):
            for x in np.arange(left + step / 2, left + wide - step / 2, step):
                self.polygon(
                    [(x, y), (x + step * 0.5, y), (x + step * 0.5, y + step * 0.55), (x, y + step * 0.55)],
                    _mix(tone, (40, 50, 70), 0.5),
                    z=self.sight * 0.5,
                )

    # --- the ground

    def street(self) -> None:
        """Road, kerbs, pavements, strips of grass, and everything painted on them."""
        tone = _hsv(self.pick((0.6, 0.08, 0.75, 0.02)), self.uniform(0, 0.16), self.uniform(0.26, 0.62))
        pavement = _hsv(self.pick((0.08, 0.6, 0.02, 0.12)), self.uniform(0, 0.3), self.uniform(0.42, 0.86))
        if self.weather == "snow":
            pavement = _mix(pavement, (235, 238, 245), self.uniform(0.3, 0.8))
        self.grass = self.grass_colour()
        self.ground(-400, 400, _NEAR, 4000, self.grass, TERRAIN)
        lit = 0.92 + 0.1 * self.sun_share
        self.ground(-self.road_half, self.road_half, _NEAR, 400, tone, ROAD, light=lit)
        for side in (-1, 1):
            if self.kerb > self.road_half:
                self.ground(side * self.road_half, side * self.kerb, _NEAR, 400, _mix(self.grass, (90, 90, 60), 0.15), TERRAIN)
            self.ground(side * self.kerb, side * self.lot, _NEAR, 400, pavement, SIDEWALK, light=lit)
            joint = _mix(pavement, (40, 40, 40), 0.3)
            step = self.uniform(0.9, 1.8)
            for z in np.arange(3, 26, step):
                self.ground(side * self.kerb, side * self.lot, z, z + 0.05 + z * 0.003, joint, light=lit, alpha=0.6)
            for x in np.arange(self.kerb + 0.7, self.lot, 0.9):
                self.ground(side * x, side * (x + 0.05), 3, 26, joint, light=lit, alpha=0.6)
            edge = _mix(pavement, (230, 230, 230), 0.4)
            self.ground(side * self.kerb, side * (self.kerb + 0.18), _NEAR, 200, edge, SIDEWALK, light=lit)
            self.ground(side * (self.road_half - 0.1), side * self.road_half, _NEAR, 200, _mix(tone, (20, 20, 20), 0.4), light=lit)
        self.tone, self.pavement = tone, pavement
        # repairs, cracks and manholes
        for _ in range(self.rng.integers(0, 5)):
            x, z = self.uniform(-1, 1) * self.road_half * 0.8, self.uniform(5, 24)
            wide, deep = self.uniform(0.4, 1.8), self.uniform(0.8, 5)
            self.ground(x, x + wide, z, z + deep, _mix(tone, (20, 20, 22), self.uniform(0.1, 0.4)), alpha=0.7)
        if self.chance(0.5):
            x, z = self.uniform(-0.6, 0.6) * self.road_half, self.uniform(6, 16)
            self.quad([(x + 0.4 * c, 0, z + 0.4 * s) for c, s in _CIRCLE], _mix(tone, (10, 10, 10), 0.5))
        # markings
        paint = _mix((244, 244, 238), tone, self.uniform(0.05, 0.45))
        centre = self.pick(("dashed", "solid", "double", "none"), (0.5, 0.2, 0.15, 0.15))
        centre_paint = _mix((236, 190, 60), tone, 0.2) if self.chance(0.25) else paint
        if centre == "dashed":
            for z in np.arange(self.uniform(1, 4), 80, 6):
                self.ground(-0.08, 0.08, z, z + 3, centre_paint)
        elif centre != "none":
            for x in (0.0,) if centre == "solid" else (-0.15, 0.15):
                self.ground(x - 0.07, x + 0.07, _NEAR, 120, centre_paint)
        if self.chance(0.5):
            for side in (-1, 1):
                self.ground(side * (self.road_half - 0.55), side * (self.road_half - 0.4), _NEAR, 120, paint)
        self.tram_side = self.pick((-1, 1))
        self.rails = self.chance(0.34)
        if self.rails:
            middle = self.tram_side * self.road_half * 0.45
            for x in (middle - 0.75, middle + 0.75):
                self.ground(x - 0.07, x + 0.07, _NEAR, 200, (70, 66, 64))
                self.ground(x - 0.03, x + 0.03, _NEAR, 200, (176, 176, 180))
        if self.chance(0.4):
            z = self.uniform(8, 16)
            for x in np.arange(-self.road_half + 0.2, self.road_half - 0.5, 1.0):
                self.ground(x, x + 0.52, z, z + 3.0, paint, alpha=0.9)
        if self.chance(0.4):
            self.arrow(self.pick((-1, 1)) * self.road_half / 2, self.uniform(8, 18), paint)

    def arrow(self, x: float, z: float, paint: Colour) -> None:
        self.ground(x - 0.12, x + 0.12, z, z + 2.2, paint)
        self.quad([(x - 0.45, 0, z + 2.2), (x + 0.45, 0, z + 2.2), (x, 0, z + 3.8)], paint)

    def grass_colour(self) -> Colour:
        if self.weather == "snow" and self.chance(0.7):
            return _hsv(0.6, self.uniform(0.01, 0.06), self.uniform(0.82, 0.95))
        if self.chance(0.3):  # dry grass, sand, soil
            return _hsv(self.uniform(0.07, 0.15), self.uniform(0.25, 0.55), self.uniform(0.4, 0.75))
        return _hsv(self.uniform(0.19, 0.34), self.uniform(0.35, 0.75), self.uniform(0.32, 0.66))

    # --- the lots on both sides

    def lots(self) -> None:
        """Fill both sides with lots, then draw all from far to near."""
        town = self.uniform(0.3, 1.0)
        pieces = []
        for side in (-1, 1):
            z = self.uniform(2, 6)
            while z < _FAR:
                length = self.uniform(8, 20)
                kind = "building" if self.chance(town * 0.75) else self.pick(("park", "house", "yard"), (0.4, 0.3, 0.3))
                pieces.append((z, min(z + length, _FAR), side, kind))
                z += length + (self.uniform(0, 4) if self.chance(0.3) else 0)
        for z0, z1, side, kind in sorted(pieces, key=lambda p: -p[0]):
            getattr(self, kind)(side, z0, z1)

    def end_of_street(self) -> None:
        """What closes the street far away."""
        kind = self.pick(("open", "building", "trees"), (0.35, 0.4, 0.25))
        z = _FAR
        if kind == "trees":
            for x in np.arange(-16, 17, 4.0):
                self.tree(x + self.uniform(-1, 1), z + self.uniform(-4, 4), self.uniform(6, 11))
        elif kind == "building":
            x = -22.0
            while x < 20:
                wide = self.uniform(8, 14)
                self.box_building(x, x + wide, z, z + 10, self.uniform(8, 22))
                x += wide

    def building(self, side: int, z0: float, z1: float) -> None:
        """A town house whose front stands at the pavement."""
        self.ground(side * self.lot, side * 40, z0, z1, self.pavement, SIDEWALK)
        inner, outer = side * self.lot, side * (self.lot + self.uniform(8, 14))
        self.box_building(min(inner, outer), max(inner, outer), z0, z1, self.uniform(5.5, 19))

    def wall_colour(self) -> Colour:
        kind = self.pick(("plaster", "brick", "grey", "bold"), (0.52, 0.1, 0.25, 0.13))
        if kind == "brick":
            return _hsv(self.uniform(0.0, 0.06), self.uniform(0.4, 0.65), self.uniform(0.38, 0.65))
        if kind == "grey":
            return _hsv(self.uniform(0.5, 0.7), self.uniform(0, 0.15), self.uniform(0.35, 0.8))
        if kind == "bold":
            return _hsv(self.uniform(0, 1), self.uniform(0.3, 0.6), self.uniform(0.5, 0.85))
        return _hsv(self.uniform(0.05, 0.15), self.uniform(0.08, 0.4), self.uniform(0.65, 0.93))

    def box_building(self, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
        """A house with windows and a flat or a pitched roof, its ridge along the street."""
        colour = self.wall_colour()
        faces = self.solid(lambda u, v, y: (v, y, u), (z0, z1, x0, x1), -0.1, (z0, z1, x0, x1), height, colour, BUILDING)
        trim = _mix(colour, self.pick(((250, 250, 245), (60, 55, 55))), 0.55)
        style = {
            "floor": self.uniform(2.7, 3.4),
            "bay": self.uniform(1.7, 3.2),
            "wide": self.uniform(0.35, 0.72),
            "high": self.uniform(0.42, 0.68),
            "glass": self.pick(((62, 78, 98), (38, 44, 56), (110, 138, 160), (84, 92, 96))),
            "trim": trim,
            "shop": self.chance(0.45),
            "bricks": self.chance(0.3),
        }
        for name, (corners, light) in faces.items():
            if name in ("u0", "v0", "v1"):
                self.facade(corners, height, light, style, colour)
        roof = self.pick(((120, 62, 48), (82, 78, 82), (140, 88, 62), (64, 58, 66)))
        if self.chance(0.55) and x1 - x0 < 15:
            middle, ridge = (x0 + x1) / 2, height + self.uniform(1.6, 3.6)
            if (z0 + z1) / 2 < 70:
                self.quad([(x0, height, z0), (middle, ridge, z0), (x1, height, z0)], colour, BUILDING, light=self.facing(0))
            inner = x0 if x0 > 0 else x1
            over = inner - math.copysign(0.35, inner)
            slope = [(over, height - 0.15, z0 - 0.25), (over, height - 0.15, z1), (middle, ridge, z1), (middle, ridge, z0 - 0.25)]
            self.quad(slope, roof, BUILDING, light=self.facing(-math.copysign(1, inner)) * 0.95)
            if self.chance(0.6) and z0 < 45:
                z = self.uniform(z0 + 1, max(z1 - 2, z0 + 1.1))
                across = (middle + inner) / 2
                self.solid(
                    lambda u, v, y: (v, y, u),
                    (z, z + 0.9, across - 0.4, across + 0.4),
                    height + 0.4,
                    (z, z + 0.9, across - 0.4, across + 0.4),
                    ridge + 0.8,
                    _mix(roof, (150, 90, 70), 0.5),
                    BUILDING,
                )
        else:
            for name, (corners, light) in faces.items():
                if name != "top":
                    self.patch(corners, 0, 1, 1 - 0.45 / height, 1, trim, light=light)

    def facade(self, corners, height: float, light: float, style: dict, colour: Colour) -> None:
        """Windows in rows, a plinth, courses of brick, and perhaps a shop on the ground floor."""
        length = float(np.linalg.norm(corners[1] - corners[0]))
        near = float(corners[:, 2].min())
        floors, bays = max(int(height / style["floor"]), 1), max(int(length / style["bay"]), 1)
        if style["bricks"] and near < 30:
            rows = np.arange(0.0, 1.0, 0.5 / height)
            zero = np.zeros_like(rows)
            dark = [_mix(colour, (30, 20, 20), 0.22)] * len(rows)
            self.patches(corners, zero, zero + 1, rows, rows + 0.09 / height, dark, light=light, alpha=0.7)
        self.patch(corners, 0, 1, 0, 0.5 / height, _mix(colour, (60, 58, 56), 0.5), light=light)
        if np.ptp(self.project(corners)[:, 0]) < self.width / 170:
            return
        first = 1 if style["shop"] and floors > 1 else 0
        column, row = np.meshgrid(np.arange(bays), np.arange(first, floors))
        a = ((column + 0.5) / bays).ravel()
        b = ((row + 0.55) / floors).ravel()
        half_a, half_b = style["wide"] / 2 / bays, style["high"] / 2 / floors
        if near < 45:
            frame_a, frame_b = 0.1 / length, 0.1 / height
            trims = [style["trim"]] * len(a)
            self.patches(
                corners, a - half_a - frame_a, a + half_a + frame_a, b - half_b - frame_b, b + half_b + frame_b, trims, light=light
            )
        evening = self.weather in ("dusk", "rain", "fog")
        lit_windows = self.rng.random(len(a)) < (0.35 if evening else 0.05)
        tones = self.rng.uniform(-0.3, 0.3, len(a))
        glass = []
        for lit, tone in zip(lit_windows, tones):
            plain = _mix(style["glass"], self.sky_colours[1] if tone > 0 else (20, 22, 30), abs(tone))
            glass.append((255, 214, 130) if lit else plain)
        self.patches(corners, a - half_a, a + half_a, b - half_b, b + half_b, glass, light=light if not evening else 1.1)
        if near < 32:
            bars = [style["trim"]] * len(a)
            self.patches(corners, a - 0.04 / length, a + 0.04 / length, b - half_b, b + half_b, bars, light=light)
            self.patches(corners, a - half_a, a + half_a, b + half_b * 0.25, b + half_b * 0.25 + 0.07 / height, bars, light=light)
        if first:
            top = 0.8 / floors
            shopfront = self.paint_colour()
            self.patch(corners, 0.02, 0.98, 0, top, _mix(shopfront, (40, 40, 40), 0.4), light=light)
            self.patch(corners, 0.02, 0.98, top * 0.84, top, shopfront, light=light)
            for i in range(max(bays // 2, 1)):
                n = max(bays // 2, 1)
                self.patch(
                    corners, (i + 0.08) / n, (i + 0.92) / n, top * 0.14, top * 0.8, _mix(style["glass"], (230, 220, 190), 0.3), light=light
                )
                self.patch(corners, (i + 0.66) / n, (i + 0.7) / n, 0, top * 0.8, _mix(shopfront, (30, 30, 30), 0.5), light=light)
        else:
            at = (self.rng.integers(0, bays) + 0.5) / bays
            door = _hsv(self.uniform(0, 1), self.uniform(0.2, 0.7), self.uniform(0.2, 0.55))
            self.patch(corners, at - 0.55 / length, at + 0.55 / length, 0, 2.3 / height, style["trim"], light=light)
            self.patch(corners, at - 0.42 / length, at + 0.42 / length, 0, 2.15 / height, door, light=light)

    def house(self, side: int, z0: float, z1: float) -> None:
        """A smaller house behind a front garden with a fence or a wall."""
        self.lawn(side, z0, z1)
        near, far = self.lot + self.uniform(3, 6), self.lot + self.uniform(11, 15)
        if z1 - z0 > 6:
            self.box_building(min(side * near, side * far), max(side * near, side * far), z0 + 2, z1 - 1, self.uniform(3.5, 7.5))
        if self.chance(0.6):
            self.tree(side * (self.lot + 1.8), self.uniform(z0 + 1, z1), self.uniform(3, 6))
        self.boundary(side, z0, z1)

    def park(self, side: int, z0: float, z1: float) -> None:
        """Grass with trees and bushes."""
        self.lawn(side, z0, z1)
        for z in sorted(self.rng.uniform(z0, z1, self.rng.integers(2, 6)), reverse=True):
            self.tree(side * (self.lot + self.uniform(1.5, 12)), float(z), self.uniform(4, 10))
        for _ in range(self.rng.integers(0, 3)):
            self.bush(side * (self.lot + self.uniform(1, 6)), self.uniform(z0, z1), self.uniform(0.6, 1.4))
        if self.chance(0.6):
            self.boundary(side, z0, z1)

    def yard(self, side: int, z0: float, z1: float) -> None:
        """Open ground behind a fence or wall, with trees or a hall behind."""
        self.lawn(side, z0, z1)
        if self.chance(0.5):
            near = self.lot + self.uniform(9, 14)
            self.box_building(min(side * near, side * (near + 10)), max(side * near, side * (near + 10)), z0, z1, self.uniform(4, 9))
        else:
            for z in sorted(self.rng.uniform(z0, z1, 3), reverse=True):
                self.tree(side * (self.lot + self.uniform(4, 12)), float(z), self.uniform(5, 9))
        self.boundary(side, z0, z1)

    def lawn(self, side: int, z0: float, z1: float) -> None:
        tone = _mix(self.grass, (110, 100, 70), self.uniform(0, 0.25))
        self.ground(side * self.lot, side * 60, z0, z1, tone, TERRAIN)

    def boundary(self, side: int, z0: float, z1: float) -> None:
        """A fence or a wall along the lot, and often across its near end."""
        kind = self.pick((self.fence, self.garden_wall, None), (0.5, 0.42, 0.08))
        if kind is None:
            return
        look = {
            "height": self.uniform(1.5, 2.2) if kind == self.fence else self.uniform(1.7, 2.8),
            "style": self.pick(("pickets", "planks")) if kind == self.fence else self.pick(("brick", "stone")),
        }
        wood = _hsv(self.uniform(0.07, 0.11), self.uniform(0.5, 0.75), self.uniform(0.45, 0.7))
        if kind == self.fence:
            look["colour"] = self.pick(((235, 235, 230), wood)) if look["style"] == "pickets" else wood
        else:
            look["colour"] = _hsv(self.uniform(0.0, 0.05), self.uniform(0.4, 0.65), self.uniform(0.3, 0.5))
        x = side * (self.lot + 0.15)
        if self.chance(0.65):
            out = side * (self.lot + self.uniform(8, 16))
            corners = [(x, 0, z0), (out, 0, z0), (out, look["height"], z0), (x, look["height"], z0)]
            kind(corners, look, self.facing(0))
        corners = [(x, 0, z0), (x, 0, z1), (x, look["height"], z1), (x, look["height"], z0)]
        kind(corners, look, self.facing(-side))

    def fence(self, corners, look: dict, light: float) -> None:
        """A fence on a face of four world corners: posts, rails and bars; all of the face is labelled, gaps too."""
        corners = np.array(corners, dtype=np.float64)
        points = self.project(corners)
        self.marker.polygon([v * _SUPERSAMPLING for v in points.ravel().tolist()], fill=FENCE)
        length, near, colour = float(np.linalg.norm(corners[1] - corners[0])), float(corners[:, 2].min()), look["colour"]
        step, share = {"pickets": (0.24, 0.62), "planks": (0.3, 0.93)}[look["style"]]
        step *= 1 if near < 20 else 2
        a = np.arange(0, length, step) / length
        top = 0.94 + 0.06 * (np.arange(len(a)) % 2) if look["style"] == "pickets" else np.ones(len(a))
        tones = [_mix(colour, (25, 22, 20), t) for t in self.rng.uniform(0, 0.22, len(a))]
        self.patches(corners, a, np.minimum(a + share * step / length, 1), np.full(len(a), 0.04), top, tones, light=light)
        thick = 0.09 / look["height"]
        for b in (0.2, 0.55, 0.9):
            self.patch(corners, 0, 1, b - thick / 2, b + thick / 2, _mix(colour, (25, 22, 20), 0.2), light=light)
        a = np.append(np.arange(0, length, 2.4), length - 0.1) / length
        posts = [_mix(colour, (25, 22, 20), 0.3)] * len(a)
        self.patches(corners, a, a + 0.13 / length, np.zeros(len(a)), np.full(len(a), 1.0), posts, light=light)

    def garden_wall(self, corners, look: dict, light: float) -> None:
        """A wall of brick or stone with a coping."""
        corners = np.array(corners, dtype=np.float64)
        length, near, colour = float(np.linalg.norm(corners[1] - corners[0])), float(corners[:, 2].min()), look["colour"]
        self.quad(corners, colour, WALL, light=light)
        course = {"brick": 0.2, "stone": 0.42}[look["style"]]
        if near < 40:
            rows = int(look["height"] / course)
            long = course * (2.2 if look["style"] == "brick" else 1.6)
            count = int(length / long) + 1
            if look["style"] == "stone":
                a, b = np.meshgrid(np.arange(count) * long / length, np.arange(rows) / rows)
                a = np.clip(a + self.rng.uniform(-0.25, 0.25, a.shape) * long / length, 0, 1).ravel()
                b = b.ravel()
                keep = self.rng.random(len(a)) < 0.6
                a, b = a[keep], b[keep]
                tones = [
                    _mix(colour, (40, 40, 44), t) if t > 0 else _mix(colour, (240, 236, 228), -t)
                    for t in self.rng.uniform(-0.3, 0.4, len(a))
                ]
                wide = self.rng.uniform(0.5, 0.95, len(a)) * long / length
                self.patches(corners, a, np.minimum(a + wide, 1), b + 0.06 / rows, b + 0.92 / rows, tones, light=light)
            else:
                a, b = np.meshgrid(np.arange(count), np.arange(rows))
                shift = (b % 2) * 0.5
                a = np.clip((a + shift) * long / length, 0, 1).ravel()
                b = (b / rows).ravel()
                mortar = [_mix(colour, (205, 198, 188), 0.4)] * rows
                lines, zero = np.arange(rows) / rows, np.zeros(rows)
                self.patches(corners, zero, zero + 1, lines, lines + 0.16 / rows, mortar, light=light)
                if near < 22:
                    self.patches(corners, a, np.minimum(a + 0.035 / length, 1), b, b + 1 / rows, [mortar[0]] * len(a), light=light)
        cap = _mix(colour, self.pick(((235, 232, 225), (80, 78, 78))), 0.5)
        self.patch(corners, 0, 1, 1 - 0.16 / look["height"], 1, cap, light=light * 1.04)
        self.patch(corners, 0, 1, 1 - 0.22 / look["height"], 1 - 0.16 / look["height"], _mix(colour, (20, 20, 20), 0.5), light=light)

    # --- plants

    def leaf_colour(self) -> Colour:
        if self.weather == "snow":
            return _hsv(self.uniform(0.28, 0.42), self.uniform(0.15, 0.4), self.uniform(0.25, 0.5))
        kind = self.pick(("green", "autumn", "blossom"), (0.72, 0.22, 0.06))
        if kind == "autumn":
            return _hsv(self.uniform(0.01, 0.15), self.uniform(0.55, 0.85), self.uniform(0.45, 0.8))
        if kind == "blossom":
            return _hsv(self.uniform(0.88, 0.97), self.uniform(0.15, 0.4), self.uniform(0.75, 0.92))
        return _hsv(self.uniform(0.2, 0.42), self.uniform(0.35, 0.75), self.uniform(0.25, 0.55))

    def tree(self, x: float, z: float, height: float) -> None:
        """A broad-leaved tree, a poplar or a conifer; its foot at (x, 0, z)."""
        scale = self.focal / max(z, 3)
        foot_x, foot_y = self.project((x, 0, max(z, 3))).tolist()
        leaf, bark = self.leaf_colour(), _hsv(self.uniform(0.04, 0.1), self.uniform(0.2, 0.5), self.uniform(0.2, 0.42))
        kind = self.pick(("round", "poplar", "conifer"), (0.66, 0.14, 0.2))
        self.shadow(x, z, height * 0.25, height * 0.14)
        stem = height * (0.42 if kind == "round" else 0.16)
        thick = scale * (0.12 + 0.028 * height)
        self.limb((foot_x, foot_y), (foot_x + thick * 0.2, foot_y - scale * stem * 1.2), thick, thick * 0.7, bark, VEGETATION, z=z)
        light = self.sun * 0.5
        if kind == "conifer":
            wide = height * self.uniform(0.2, 0.28) * scale
            tiers = 6
            for i in range(tiers):
                low = foot_y - scale * (stem + (height - stem) * i / tiers)
                high = foot_y - scale * min(stem + (height - stem) * (i + 1.7) / tiers, height)
                half = wide * (1 - i / tiers * 0.88)
                sag = half * 0.14
                points = [(foot_x - half, low + sag), (foot_x - half * 0.4, low - sag * 0.3), (foot_x, low + sag * 0.8)]
                points += [(foot_x + half * 0.45, low - sag * 0.2), (foot_x + half, low + sag), (foot_x, high)]
                self.polygon(points, _mix(leaf, (12, 30, 26), 0.42 - 0.05 * i), VEGETATION, z=z)
                lit = [(foot_x + half * 0.8 * np.sign(light), low), (foot_x, low), (foot_x, high)]
                self.polygon(lit, _mix(leaf, (255, 250, 190), 0.1), z=z, alpha=0.35)
            return
        crown_y = foot_y - scale * (height + stem) / 2
        half_x = scale * height * (self.uniform(0.26, 0.36) if kind == "round" else 0.12)
        self.foliage(foot_x, crown_y, half_x, scale * (height - stem) / 2, leaf, z)

    def foliage(self, x: float, y: float, half_x: float, half_y: float, leaf: Colour, z: float) -> None:
        """Clumps of leaves that fill an ellipse: dark below, lit from above and from the sun's side."""
        size = math.sqrt(half_x * half_y) / self.height * 256
        count = int(min(max(size * 1.1, 10), 46))
        self.ellipse(x, y, half_x * 0.82, half_y * 0.82, _mix(leaf, (14, 24, 16), 0.5), VEGETATION, z=z)
        angle, far = self.rng.uniform(0, 2 * math.pi, count), np.sqrt(self.rng.random(count))
        px, py = x + half_x * far * np.cos(angle) * 0.86, y + half_y * far * np.sin(angle) * 0.86
        radius = (0.2 + 0.14 * self.rng.random(count)) * min(half_x, half_y)
        height = np.sin(angle) * far  # -1 at the top
        side = np.cos(angle) * far * self.sun
        for i in np.argsort(-height):
            lit = 0.5 - 0.42 * height[i] + 0.3 * side[i] * self.sun_share * 2
            base = _mix(_mix(leaf, (12, 20, 20), 0.5), _mix(leaf, (255, 250, 200), 0.14), min(max(lit, 0), 1))
            self.ellipse(px[i], py[i], radius[i], radius[i] * 0.85, base, VEGETATION, z=z)
        dots = int(min(count * 3, 110))
        angle, far = self.rng.uniform(0, 2 * math.pi, dots), np.sqrt(self.rng.random(dots)) * 0.92
        grain = max(min(half_x, half_y) * 0.065, 0.4)
        for c, s, tone in zip(np.cos(angle) * far, np.sin(angle) * far, self.rng.uniform(-0.4, 0.3, dots)):
            shade = _mix(leaf, (10, 16, 12), -tone) if tone < 0 else _mix(leaf, (255, 252, 190), tone)
            self.ellipse(x + half_x * c, y + half_y * s, grain * 1.3, grain, shade, VEGETATION, z=z)

    def bush(self, x: float, z: float, height: float) -> None:
        scale = self.focal / max(z, 3)
        foot_x, foot_y = self.project((x, 0, max(z, 3))).tolist()
        half = scale * height * self.uniform(0.5, 0.9)
        self.foliage(foot_x, foot_y - scale * height * 0.45, half, scale * height * 0.52, self.leaf_colour(), z)

    # --- vehicles

    def vehicle_place(self, x: float, z: float, length: float, heading: str) -> Place:
        """The frame of a vehicle: u along it from its rear, v across, y up. Headings: away, towards, left, right."""
        if heading == "away":
            return lambda u, v, y: (x + v, y, z + u)
        if heading == "towards":
            return lambda u, v, y: (x - v, y, z + length - u)
        if heading == "right":
            return lambda u, v, y: (x + u, y, z - v)
        return lambda u, v, y: (x + length - u, y, z + v)

    def wheels(self, place: Place, faces: dict, at: Sequence[float], half: float, radius: float, label: int) -> None:
        hub = self.pick(((170, 172, 176), (90, 92, 96), (205, 206, 208)))
        for name, v in (("v0", -half - 0.01), ("v1", half + 0.01)):
            if name in faces:
                for u in at:
                    self.wheel(place, u, v, radius, label, hub)

    def ground_shadow(self, place: Place, length: float, half: float) -> None:
        for grow in (0.35, 0.1):
            ring = [(-grow, -half - grow), (length + grow, -half - grow), (length + grow, half + grow), (-grow, half + grow)]
            self.quad([place(u, v, 0) for u, v in ring], (14, 14, 20), alpha=0.4)

    def lamps(self, faces: dict, rear: str, front: str, low: float, high: float) -> None:
        """Lamps, a plate and a bumper on the ends that can be seen."""
        lit = self.weather in ("dusk", "fog", "rain") or self.chance(0.2)
        for name, colour in ((rear, (255, 60, 50) if lit else (168, 26, 30)), (front, (255, 252, 220) if lit else (214, 220, 226))):
            if name in faces:
                corners, light = faces[name]
                self.patch(corners, 0.02, 0.98, 0.0, 0.22, (44, 44, 48), light=light)
                for a in (0.05, 0.76):
                    self.patch(corners, a, a + 0.19, low, high, colour, light=max(light, 1.0))
                self.patch(corners, 0.36, 0.64, 0.2 if name == rear else 0.06, 0.38 if name == rear else 0.2, (232, 232, 222), light=light)
                if name == front:
                    self.patch(corners, 0.28, 0.72, low - 0.06, high - 0.02, (34, 34, 38), light=light)

    def car(self, x: float, z: float, heading: str) -> None:
        """A hatchback, a saloon, an estate or a van."""
        kind = self.pick(("hatch", "saloon", "estate", "van"), (0.35, 0.3, 0.2, 0.15))
        length = {"hatch": 3.9, "saloon": 4.6, "estate": 4.5, "van": 4.8}[kind] * self.uniform(0.95, 1.06)
        half, waist = self.uniform(0.84, 0.94), self.uniform(0.86, 0.98)
        roof = {"hatch": 1.5, "saloon": 1.45, "estate": 1.6, "van": 1.95}[kind] * self.uniform(0.97, 1.06)
        colour = self.paint_colour()
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        for u in (0.4, length - 1.0):  # tyres under the ends
            for v in (-half + 0.05, half - 0.27):
                self.quad([place(u, v, 0), place(u, v + 0.22, 0), place(u, v + 0.22, 0.5), place(u, v, 0.5)], (22, 22, 25), CAR)
        low, high = (0, length, -half, half), (0.1, length - 0.14, -half * 0.97, half * 0.97)
        body = self.solid(place, low, 0.24, high, waist, colour, CAR)
        self.lamps(body, "u0", "u1", 0.5, 0.78)
        for name in ("v0", "v1"):
            if name in body:
                corners, light = body[name]
                self.patch(corners, 0, 1, 0, 0.14, (40, 40, 44), light=light)
                self.patch(corners, 0.1, 0.9, 0.62, 0.68, _mix(colour, (255, 255, 255), 0.3), light=light)
                for a in (0.33, 0.56):
                    self.patch(corners, a, a + 0.008, 0.14, 1, _mix(colour, (0, 0, 0), 0.5), light=light)
                    self.patch(corners, a + 0.03, a + 0.065, 0.74, 0.8, _mix(colour, (20, 20, 20), 0.4), light=light)
        self.wheels(place, body, (length * 0.19, length * 0.8), half, 0.33, CAR)
        back, front, lean = {
            "hatch": (0.02, 0.7, 0.1),
            "saloon": (0.14, 0.72, 0.12),
            "estate": (0.01, 0.7, 0.05),
            "van": (0.01, 0.82, 0.03),
        }[kind]
        base = (length * back, length * front, -half * 0.93, half * 0.93)
        top = (length * (back + lean), length * (front - 0.15), -half * 0.78, half * 0.78)
        cabin = self.solid(place, base, waist, top, roof, colour, CAR)
        glass = _mix((36, 44, 54), self.sky_colours[1], self.uniform(0.05, 0.35))
        for name, (corners, light) in cabin.items():
            if name in ("u0", "u1"):
                self.patch(corners, 0.07, 0.93, 0.1, 0.86, glass, light=light)
                self.patch(corners, 0.12, 0.4, 0.45, 0.8, _mix(glass, (255, 255, 255), 0.25), light=light, alpha=0.6)
            elif name != "top":
                for a0, a1 in ((0.08, 0.46), (0.51, 0.92)):
                    self.patch(corners, a0, a1, 0.12, 0.84, glass, light=light)
        if self.chance(0.06):  # a taxi's sign
            u = length * (back + front) / 2
            self.solid(place, (u, u + 0.25, -0.3, 0.3), roof, (u, u + 0.25, -0.28, 0.28), roof + 0.2, (250, 214, 60), CAR)

    def bus(self, x: float, z: float, heading: str) -> None:
        """A city bus: one long box with a band of windows and a lit destination."""
        length, half, roof = self.uniform(8.5, 11), 1.25, self.uniform(2.9, 3.3)
        colour = _hsv(self.pick((0.0, 0.09, 0.14)) + self.uniform(-0.02, 0.02), self.uniform(0.75, 0.95), self.uniform(0.7, 0.95))
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        rectangle = (0, length, -half, half)
        body = self.solid(place, rectangle, 0.3, (0.08, length - 0.1, -half * 0.96, half * 0.96), roof, colour, BUS)
        glass = _mix((34, 42, 52), self.sky_colours[1], self.uniform(0.05, 0.35))
        stripe = self.paint_colour()
        for name, (corners, light) in body.items():
            if name in ("v0", "v1"):
                self.patch(corners, 0, 1, 0, 0.08, (40, 40, 44), light=light)
                self.patch(corners, 0, 1, 0.28, 0.36, stripe, light=light)
                self.patch(corners, 0.02, 0.98, 0.48, 0.84, (26, 28, 32), light=light)
                a = np.linspace(0.03, 0.97, 7)
                self.patches(corners, a[:-1] + 0.008, a[1:] - 0.008, np.full(6, 0.5), np.full(6, 0.82), [glass] * 6, light=light)
                if name == "v1":
                    for a0 in (0.3, 0.8):
                        self.patch(corners, a0, a0 + 0.12, 0.04, 0.82, (30, 32, 36), light=light)
                        self.patch(corners, a0 + 0.01, a0 + 0.056, 0.08, 0.8, glass, light=light)
                        self.patch(corners, a0 + 0.064, a0 + 0.11, 0.08, 0.8, glass, light=light)
        self.lamps(body, "u0", "u1", 0.14, 0.26)
        for name in ("u0", "u1"):
            if name in body:
                corners, light = body[name]
                self.patch(corners, 0.04, 0.96, 0.4 if name == "u1" else 0.55, 0.84, glass, light=light)
                self.patch(corners, 0.12, 0.88, 0.87, 0.97, (22, 22, 24), light=light)
                a = np.arange(0.18, 0.8, 0.09)
                self.patches(corners, a, a + 0.055, np.full(len(a), 0.89), np.full(len(a), 0.95), [(255, 176, 40)] * len(a), light=1.1)
                if name == "u1":
                    self.patch(corners, 0.49, 0.51, 0.4, 0.84, (26, 28, 32), light=light)
        self.wheels(place, body, (length * 0.2, length * 0.78), half, 0.48, BUS)

    def truck(self, x: float, z: float, heading: str) -> None:
        """A lorry: a cargo box, a tarpaulin or a tipper, and a cab in another colour."""
        length, half = self.uniform(6.8, 9.2), 1.22
        cab, cargo_top = self.uniform(1.9, 2.3), self.uniform(2.9, 3.5)
        kind = self.pick(("box", "tarpaulin", "tipper"), (0.45, 0.35, 0.2))
        colour = _hsv(self.uniform(0, 1), self.uniform(0, 0.1), self.uniform(0.75, 0.96))
        cab_colour = _hsv(self.uniform(0.55, 0.62), self.uniform(0.5, 0.9), self.uniform(0.5, 0.9))
        if kind == "tipper":
            cargo_top = self.uniform(2.1, 2.4)
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        chassis = (0.2, length - 0.4, -half * 0.8, half * 0.8)
        cargo = (0, length - cab - 0.35, -half, half)
        front = (length - cab, length, -half * 0.96, half * 0.96)
        front_top = (length - cab + 0.05, length - 0.3, -half * 0.9, half * 0.9)

        def draw_cab() -> None:
            body = self.solid(place, front, 0.4, front_top, 2.5, cab_colour, TRUCK)
            glass = _mix((34, 42, 52), self.sky_colours[1], 0.2)
            self.lamps({k: f for k, f in body.items() if k == "u1"}, "", "u1", 0.1, 0.24)
            for name, (corners, light) in body.items():
                if name == "u1":
                    self.patch(corners, 0.05, 0.95, 0.52, 0.9, glass, light=light)
                    self.patch(corners, 0.2, 0.8, 0.28, 0.42, (40, 40, 44), light=light)
                elif name in ("v0", "v1"):
                    self.patch(corners, 0.3, 0.82, 0.5, 0.86, glass, light=light)
                    self.patch(corners, 0.26, 0.28, 0.1, 0.95, _mix(cab_colour, (0, 0, 0), 0.5), light=light)
            self.wheels(place, body, (length - cab * 0.5,), half, 0.5, TRUCK)

        def draw_cargo() -> None:
            body = self.solid(place, chassis, 0.45, chassis, 1.0, (46, 46, 50), TRUCK)
            self.wheels(place, body, (1.0, 2.1), half, 0.5, TRUCK)
            for v in (-half + 0.1, half - 0.55):
                self.quad([place(0.6, v, 0), place(0.6, v + 0.45, 0), place(0.6, v + 0.45, 0.95), place(0.6, v, 0.95)], (24, 24, 27), TRUCK)
            top = cargo if kind != "tarpaulin" else (0.1, cargo[1] - 0.1, -half * 0.9, half * 0.9)
            box = self.solid(place, cargo, 0.95, top, cargo_top, colour, TRUCK)
            for name, (corners, light) in box.items():
                dark = _mix(colour, (10, 10, 12), 0.4)
                if name in ("v0", "v1"):
                    if kind == "box":
                        self.patch(corners, 0.2, 0.8, 0.4, 0.68, self.paint_colour(), light=light)
                    else:
                        a = np.arange(0.06, 0.98, 0.13)
                        ribs = [dark] * len(a)
                        self.patches(corners, a, a + 0.02, np.full(len(a), 0.03), np.full(len(a), 0.97), ribs, light=light)
                    self.patch(corners, 0, 1, 0, 0.06, dark, light=light)
                    self.patch(corners, 0, 1, 0.95, 1, dark, light=light)
                elif name in ("u0", "u1"):
                    for a in (0.0, 0.485, 0.97):
                        self.patch(corners, a, a + 0.03, 0, 1, dark, light=light)
                    for a in (0.3, 0.64):
                        self.patch(corners, a, a + 0.04, 0.06, 0.94, _mix(colour, (200, 200, 200), 0.4), light=light)
                    self.patch(corners, 0, 1, 0, 0.05, dark, light=light)
            if heading != "towards":
                corners = np.array([place(0, -half, 0.55), place(0, half, 0.55), place(0, half, 0.95), place(0, -half, 0.95)])
                if heading == "away":
                    self.quad(corners, (40, 40, 44), TRUCK)
                    for a in (0.03, 0.82):
                        self.patch(corners, a, a + 0.15, 0.3, 0.9, (200, 34, 34), light=1.0)
                    self.patch(corners, 0.38, 0.62, 0.15, 0.85, (236, 204, 70), light=1.0)
            self.wheels(place, box, (1.0, 2.1), half, 0.5, TRUCK)

        for part in (draw_cab, draw_cargo) if heading == "away" else (draw_cargo, draw_cab):
            part()

    def tram(self, x: float, z: float, heading: str) -> None:
        """A tram on its rails: several cars, a pantograph, one big lamp (Cityscapes counts trams as trains)."""
        half, roof, cars = 1.2, self.uniform(3.0, 3.3), int(self.rng.integers(2, 4))
        part = self.uniform(6.5, 8)
        length = cars * part
        colour = _hsv(self.uniform(0.36, 0.48), self.uniform(0.6, 0.9), self.uniform(0.5, 0.85))
        lower = _mix(colour, (250, 246, 225), 0.8)
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        glass = _mix((30, 36, 46), self.sky_colours[1], self.uniform(0.05, 0.3))
        order = range(cars) if heading == "towards" else reversed(range(cars))
        for i in order:
            u0, u1 = i * part + 0.25, (i + 1) * part - 0.25
            nose0, nose1 = (0.6 if i == 0 else 0.0), (0.6 if i == cars - 1 else 0.0)
            if i < cars - 1:
                self.solid(
                    place,
                    (u1, u1 + 0.5, -half * 0.8, half * 0.8),
                    0.5,
                    (u1, u1 + 0.5, -half * 0.8, half * 0.8),
                    roof - 0.2,
                    (34, 34, 38),
                    TRAIN,
                )
            body = self.solid(place, (u0, u1, -half, half), 0.2, (u0 + nose0, u1 - nose1, -half * 0.9, half * 0.9), roof, colour, TRAIN)
            for name, (corners, light) in body.items():
                if name == "top":
                    continue
                self.patch(corners, 0, 1, 0, 0.07, (36, 36, 40), light=light)
                self.patch(corners, 0, 1, 0.07, 0.4, lower, light=light)
                if name in ("v0", "v1"):
                    a = np.linspace(0.06, 0.94, 5)
                    self.patches(corners, a[:-1] + 0.012, a[1:] - 0.012, np.full(4, 0.46), np.full(4, 0.8), [glass] * 4, light=light)
                    self.patch(corners, 0.4, 0.6, 0.07, 0.84, _mix(lower, (20, 20, 20), 0.35), light=light)
                    self.patch(corners, 0.42, 0.49, 0.12, 0.8, glass, light=light)
                    self.patch(corners, 0.51, 0.58, 0.12, 0.8, glass, light=light)
                else:
                    self.patch(corners, 0.1, 0.9, 0.44, 0.82, glass, light=light)
                    self.patch(corners, 0.3, 0.7, 0.85, 0.96, (24, 24, 26), light=light)
                    self.patch(corners, 0.38, 0.62, 0.875, 0.935, (255, 190, 60), light=1.1)
                    middle = corners.mean(0) * 0.5 + (corners[0] + corners[1]) * 0.25
                    px, py = self.project(middle).tolist()
                    radius = 0.2 * self.focal / max(float(middle[2]), 3)
                    self.ellipse(px, py, radius * 1.25, radius * 1.25, (60, 60, 64))
                    self.ellipse(px, py, radius, radius, (255, 250, 214))
            self.solid(
                place,
                (u0 + 1.2, u1 - 1.2, -0.8, 0.8),
                roof,
                (u0 + 1.3, u1 - 1.3, -0.7, 0.7),
                roof + 0.32,
                (120, 122, 126),
                TRAIN,
            )
        u = part * 0.5
        for a, b in (((u - 0.6, roof + 0.3), (u + 0.4, roof + 0.9)), ((u + 0.4, roof + 0.9), (u - 0.2, roof + 1.5))):
            p, q = (self.project(place(w, 0, y)).tolist() for w, y in (a, b))
            wide = max(self.focal / max(place(u, 0, 0)[2], 3) * 0.1, 0.8)
            self.limb(p, q, wide, wide, (50, 50, 54), TRAIN)
        bar = [self.project(place(u - 0.2, v, roof + 1.5)).tolist() for v in (-0.8, 0.8)]
        self.limb(*bar, wide, wide, (50, 50, 54), TRAIN)

    # --- people and two-wheelers, drawn as flat figures that face the camera

    def figure_frame(self, x: float, z: float, flip: int):
        """Metres of a figure (to its front, up) -> picture pixels, and pixels per metre."""
        scale = _FIGURES * self.focal / z
        foot_x, foot_y = self.project((x, 0, z)).tolist()
        return (lambda dx, dy: (foot_x + flip * dx * scale, foot_y - dy * scale)), scale

    def skin(self) -> Colour:
        return self.pick(((244, 208, 180), (224, 172, 136), (186, 128, 92), (128, 84, 58), (92, 60, 42)))

    def person(self, x: float, z: float) -> None:
        """Someone on foot, seen from the side while walking, or from the front or the back."""
        flip = self.pick((-1, 1))
        at, s = self.figure_frame(x, z, flip)
        tall = self.uniform(1.55, 1.92) if self.chance(0.88) else self.uniform(1.05, 1.4)
        k = tall / 1.75
        coat, legs, skin = self.paint_colour(), _mix(self.paint_colour(), (40, 44, 60), 0.5), self.skin()
        hair = self.pick(((40, 30, 24), (96, 64, 38), (190, 150, 84), (150, 148, 146), (24, 22, 22)))
        side_view = self.chance(0.5)
        self.shadow(x, z, 0.4, 0.22)
        hip, shoulder = 0.86 * k, 1.44 * k
        stride = self.uniform(0.08, 0.32) * k if side_view else self.uniform(0.07, 0.13) * k
        dress = self.chance(0.2)
        shoe = self.pick(((30, 28, 28), (220, 220, 220), (110, 70, 44)))
        for foot, dark in ((-stride, 0.25), (stride, 0.0)):
            tone = _mix(skin if dress else legs, (0, 0, 0), dark)
            knee = at(foot * 0.55 + 0.02 * side_view, 0.46 * k)
            self.limb(at(foot * 0.25, hip), knee, s * 0.17 * k, s * 0.14 * k, tone, PERSON, z=z)
            self.limb(knee, at(foot, 0.08), s * 0.14 * k, s * 0.1 * k, tone, PERSON, z=z)
            self.limb(at(foot - 0.03, 0.05), at(foot + 0.11 * side_view + 0.02, 0.05), s * 0.1, s * 0.09, shoe, PERSON, z=z)
        half = (0.15 if side_view else 0.21) * k
        swing = self.uniform(-0.25, 0.25) * k if side_view else 0.0
        if side_view:
            self.limb(at(0, shoulder - 0.06), at(-swing, 0.95 * k), s * 0.11 * k, s * 0.09 * k, _mix(coat, (0, 0, 0), 0.35), PERSON, z=z)
        hem = self.pick((0.8, 0.72)) * k if not dress else 0.5 * k
        flare = 0.3 * k if dress else half * 0.95
        torso = [
            at(-half, shoulder),
            at(-half * 0.86, 1.05 * k),
            at(-flare, hem),
            at(flare, hem),
            at(half * 0.86, 1.05 * k),
            at(half, shoulder),
        ]
        torso += [at(half * 0.5, shoulder + 0.06 * k), at(-half * 0.5, shoulder + 0.06 * k)]
        self.polygon(torso, coat, PERSON, light=0.98, z=z)
        shade_side = [at(0, shoulder + 0.05 * k), at(half, shoulder), at(half * 0.86, 1.05 * k), at(flare, hem), at(0, hem)]
        self.polygon(shade_side, (0, 0, 0), z=z, alpha=0.16)
        if not dress and self.chance(0.5):
            self.limb(at(-half * 0.8, 0.98 * k), at(half * 0.8, 0.98 * k), s * 0.05, s * 0.05, _mix(coat, (20, 20, 20), 0.6), z=z)
        arms = ((swing, 0.92 * k),) if side_view else ((-half - 0.07 * k, 0.9 * k), (half + 0.07 * k, 0.9 * k))
        for i, (dx, dy) in enumerate(arms):
            start = at(0 if side_view else (-half if i == 0 else half) * 0.9, shoulder - 0.05 * k)
            self.limb(start, at(dx, dy), s * 0.12 * k, s * 0.09 * k, _mix(coat, (0, 0, 0), 0.14), PERSON, z=z)
            self.ellipse(*at(dx, dy - 0.04), s * 0.05 * k, s * 0.05 * k, skin, PERSON, z=z)
        if self.chance(0.3):  # a bag
            bag = self.paint_colour()
            dx = arms[-1][0]
            corners = [at(dx - 0.13, 0.9 * k), at(dx + 0.13, 0.9 * k), at(dx + 0.15, 0.58 * k), at(dx - 0.15, 0.58 * k)]
            self.polygon(corners, bag, PERSON, z=z)
        elif side_view and self.chance(0.35):  # a rucksack
            self.limb(at(-half - 0.07, shoulder - 0.08), at(-half - 0.07, 1.1 * k), s * 0.22, s * 0.24, self.paint_colour(), PERSON, z=z)
        self.head(at, s, 0.03 * side_view, 1.62 * k, k, skin, hair, side_view, PERSON, z)
        if self.weather in ("rain", "snow") and self.chance(0.35):
            hue = self.paint_colour()
            top = 2.12 * k
            dome = [at(0.62 * c, top + 0.32 * max(sn, -0.05)) for c, sn in _CIRCLE]
            self.limb(at(0.1, 1.2 * k), at(0, top), s * 0.04, s * 0.04, (50, 50, 50), PERSON, z=z)
            self.polygon(dome, hue, PERSON, z=z)
            self.polygon([at(-0.2, top), at(0.2, top), at(0, top + 0.32)], _mix(hue, (255, 255, 255), 0.2), z=z)

    def head(self, at, s, dx, dy, k, skin: Colour, hair: Colour, side_view: bool, label: int, z: float) -> None:
        radius = 0.12 * k
        self.limb(at(dx * 0.5, dy - 0.2 * k), at(dx, dy), s * 0.09 * k, s * 0.1 * k, skin, label, z=z)
        self.ellipse(*at(dx, dy), s * radius * 0.86, s * radius, skin, label, z=z)
        back = -0.03 * k if side_view else 0.0
        crown = [at(dx + back + radius * 1.0 * c, dy + 0.025 * k + radius * 1.02 * max(sn, -0.2)) for c, sn in _CIRCLE]
        self.polygon(crown, hair, label, z=z)
        if self.chance(0.25):
            self.limb(
                at(dx + back * 2 - 0.04 * k, dy), at(dx + back * 2 - 0.05 * k, dy - 0.14 * k), s * 0.13 * k, s * 0.1 * k, hair, label, z=z
            )
        elif self.chance(0.3):
            hat = self.paint_colour()
            self.polygon([at(dx + radius * c, dy + 0.07 * k + radius * 0.8 * max(sn, 0)) for c, sn in _CIRCLE], hat, label, z=z)
            self.limb(at(dx - 0.1 * k, dy + 0.07 * k), at(dx + 0.17 * k, dy + 0.07 * k), s * 0.035, s * 0.035, hat, label, z=z)

    def bicycle(self, x: float, z: float, rider: bool, behind: bool) -> None:
        """A bicycle from the side or from behind, with or without its rider. Wheels are labelled as full discs."""
        flip = self.pick((-1, 1))
        at, s = self.figure_frame(x, z, flip)
        colour, dark = self.paint_colour(), (26, 26, 28)
        tube = max(s * 0.055, 1.1)
        if behind:
            self.shadow(x, z, 0.3, 0.5)
            self.ellipse(*at(0, 0.34), s * 0.07, s * 0.36, dark, BICYCLE, z=z)
            self.limb(at(0, 0.5), at(0, 0.92), s * 0.13, s * 0.1, colour, BICYCLE, z=z)
            self.limb(at(-0.3, 1.05), at(0.3, 1.05), tube * 1.2, tube * 1.2, dark, BICYCLE, z=z)
            self.ellipse(*at(0, 0.66), s * 0.06, s * 0.05, (220, 30, 30), BICYCLE, z=z)
            self.limb(at(-0.12, 0.94), at(0.12, 0.94), s * 0.08, s * 0.08, dark, BICYCLE, z=z)
            if rider:
                self.rider_behind(at, s, z)
            return
        self.shadow(x, z, 0.9, 0.2)
        radius = 0.36
        hub_a, hub_b = (-0.54, radius), (0.54, radius)
        wide = max(s * 0.06, 1.2)
        for cx, cy in (hub_a, hub_b):
            px, py = at(cx, cy)
            r = s * radius
            for r1, c1 in ((r, dark), (r - wide * 0.5, (70, 70, 74))):
                box = [v * _SUPERSAMPLING for v in (px - r1, py - r1, px + r1, py + r1)]
                self.opaque.ellipse(box, outline=self.shade(c1, 1, z), width=max(int(wide * _SUPERSAMPLING * (1 if r1 == r else 0.4)), 1))
            self.marker.ellipse([v * _SUPERSAMPLING for v in (px - r, py - r, px + r, py + r)], fill=BICYCLE)
            for i in range(0, 9):
                c, sn = _CIRCLE[i]
                ends = [
                    (px + r * c) * _SUPERSAMPLING,
                    (py + r * sn) * _SUPERSAMPLING,
                    (px - r * c) * _SUPERSAMPLING,
                    (py - r * sn) * _SUPERSAMPLING,
                ]
                self.opaque.line(ends, fill=self.shade((150, 150, 154), 1, z), width=1)
        crank, seat, head = (-0.08, 0.3), (-0.22, 0.86), (0.4, 0.86)
        frame = [at(*p) for p in (hub_a, crank, head, seat)]
        self.marker.polygon([v * _SUPERSAMPLING for p in frame for v in p], fill=BICYCLE)
        for p, q in ((hub_a, crank), (hub_a, seat), (crank, seat), (crank, head), (seat, head), (hub_b, (0.36, 1.02))):
            self.limb(at(*p), at(*q), tube, tube, colour, BICYCLE, z=z)
        self.limb(at(0.36, 1.02), at(0.24, 1.06), tube * 1.2, tube * 1.2, dark, BICYCLE, z=z)
        self.limb(at(-0.34, 0.92), at(-0.1, 0.93), tube * 1.8, tube * 1.3, dark, BICYCLE, z=z)
        self.limb(at(-0.14, 0.2), at(0.0, 0.4), tube * 0.8, tube * 0.8, dark, BICYCLE, z=z)
        if self.chance(0.35):
            basket = [at(0.42, 1.0), at(0.74, 1.0), at(0.7, 0.76), at(0.46, 0.76)]
            self.polygon(basket, (150, 116, 76), BICYCLE, z=z)
        if rider:
            self.rider_side(at, s, (-0.22, 0.95), (0.26, 1.08), (-0.04, 0.24), z, self.chance(0.5))

    def motorcycle(self, x: float, z: float, rider: bool, behind: bool) -> None:
        """A motorcycle or a scooter from the side or from behind, with or without its rider."""
        flip = self.pick((-1, 1))
        at, s = self.figure_frame(x, z, flip)
        colour, dark = _hsv(self.uniform(0.72, 0.98), self.uniform(0.7, 0.95), self.uniform(0.5, 0.85)), (26, 26, 28)
        steel = (150, 152, 158)
        if behind:
            self.shadow(x, z, 0.45, 0.6)
            self.ellipse(*at(0, 0.33), s * 0.12, s * 0.34, dark, MOTORCYCLE, z=z)
            body = [at(-0.2, 0.45), at(0.2, 0.45), at(0.26, 0.8), at(0.17, 1.0), at(-0.17, 1.0), at(-0.26, 0.8)]
            self.polygon(body, colour, MOTORCYCLE, z=z)
            self.limb(at(0.22, 0.32), at(0.22, 0.5), s * 0.11, s * 0.11, steel, MOTORCYCLE, z=z)
            self.limb(at(-0.4, 1.1), at(0.4, 1.1), s * 0.07, s * 0.07, dark, MOTORCYCLE, z=z)
            for dx in (-0.42, 0.42):
                self.limb(at(dx * 0.9, 1.1), at(dx, 1.28), s * 0.03, s * 0.03, dark, MOTORCYCLE, z=z)
                self.ellipse(*at(dx, 1.3), s * 0.09, s * 0.06, (60, 62, 66), MOTORCYCLE, z=z)
            self.polygon([at(-0.13, 0.76), at(0.13, 0.76), at(0.13, 0.86), at(-0.13, 0.86)], (255, 50, 44), MOTORCYCLE, z=z)
            self.polygon([at(-0.1, 0.52), at(0.1, 0.52), at(0.1, 0.66), at(-0.1, 0.66)], (230, 230, 220), MOTORCYCLE, z=z)
            if rider:
                self.rider_behind(at, s, z)
            return
        self.shadow(x, z, 1.0, 0.25)
        radius = 0.33
        hull = [at(*p) for p in ((-0.62, 0.36), (-0.5, 0.8), (0.3, 1.02), (0.62, 0.36))]
        self.marker.polygon([v * _SUPERSAMPLING for p in hull for v in p], fill=MOTORCYCLE)
        for cx in (-0.66, 0.66):
            for r, c in ((radius, dark), (radius * 0.62, (140, 142, 146)), (radius * 0.42, (60, 60, 64))):
                self.ellipse(*at(cx, radius), s * r, s * r, c, MOTORCYCLE, z=z)
        self.limb(at(0.66, radius), at(0.36, 1.0), s * 0.09, s * 0.09, steel, MOTORCYCLE, z=z)
        self.polygon([at(-0.5, 0.3), at(0.32, 0.3), at(0.42, 0.62), at(-0.45, 0.62)], (62, 62, 66), MOTORCYCLE, z=z)
        self.ellipse(*at(-0.02, 0.45), s * 0.17, s * 0.15, steel, MOTORCYCLE, z=z)
        self.polygon([at(-0.1, 0.6), at(0.48, 0.62), at(0.42, 0.92), at(0.1, 0.95), at(-0.14, 0.8)], colour, MOTORCYCLE, z=z)
        self.polygon([at(-0.86, 0.72), at(-0.1, 0.66), at(-0.08, 0.82), at(-0.86, 0.88)], dark, MOTORCYCLE, z=z)
        self.polygon([at(-0.95, 0.62), at(-0.55, 0.55), at(-0.5, 0.72), at(-0.92, 0.8)], colour, MOTORCYCLE, z=z)
        self.limb(at(-0.86, 0.3), at(-0.2, 0.28), s * 0.1, s * 0.08, steel, MOTORCYCLE, z=z)
        self.limb(at(0.34, 1.02), at(0.2, 1.1), s * 0.06, s * 0.06, dark, MOTORCYCLE, z=z)
        self.ellipse(*at(0.5, 0.9), s * 0.1, s * 0.1, (250, 246, 220), MOTORCYCLE, z=z)
        self.polygon([at(0.52, 0.62), at(0.78, 0.68), at(0.9, 0.6), at(0.86, 0.72), at(0.6, 0.78)], colour, MOTORCYCLE, z=z)
        if rider:
            self.rider_side(at, s, (-0.34, 0.84), (0.24, 1.1), (0.0, 0.36), z, True)

    def vest(self) -> Colour:
        """Most who ride wear something that is seen from far."""
        if self.chance(0.2):
            return self.paint_colour()
        return _hsv(self.pick((0.06, 0.16, 0.22)) + self.uniform(-0.02, 0.02), self.uniform(0.85, 1), self.uniform(0.85, 1))

    def rider_side(self, at, s, seat, grip, pedal, z: float, helmet: bool) -> None:
        """A rider from the side: from seat to grip and pedal, in metres of the figure."""
        coat, trousers, skin = self.vest(), _mix(self.paint_colour(), (40, 44, 60), 0.5), self.skin()
        shoulder = (seat[0] + 0.3, seat[1] + 0.52)
        knee = (seat[0] + 0.4, seat[1] - 0.16)
        self.limb(at(*seat), at(*knee), s * 0.19, s * 0.16, trousers, RIDER, z=z)
        self.limb(at(*knee), at(*pedal), s * 0.15, s * 0.11, trousers, RIDER, z=z)
        self.limb(at(pedal[0] - 0.02, pedal[1] - 0.04), at(pedal[0] + 0.12, pedal[1] - 0.04), s * 0.1, s * 0.08, (34, 32, 32), RIDER, z=z)
        self.limb(at(*seat), at(*shoulder), s * 0.27, s * 0.26, coat, RIDER, z=z)
        elbow = (shoulder[0] + 0.12, shoulder[1] - 0.26)
        self.limb(at(*shoulder), at(*elbow), s * 0.13, s * 0.12, _mix(coat, (0, 0, 0), 0.16), RIDER, z=z)
        self.limb(at(*elbow), at(*grip), s * 0.12, s * 0.09, _mix(coat, (0, 0, 0), 0.16), RIDER, z=z)
        dx, dy = shoulder[0] + 0.1, shoulder[1] + 0.24
        self.rider_head(at, s, dx, dy, skin, helmet, z)

    def rider_behind(self, at, s, z: float) -> None:
        """A rider seen from behind, or from ahead."""
        coat, trousers, skin = self.vest(), _mix(self.paint_colour(), (40, 44, 60), 0.5), self.skin()
        for side in (-1, 1):
            self.limb(at(side * 0.12, 0.92), at(side * 0.26, 0.62), s * 0.19, s * 0.15, trousers, RIDER, z=z)
            self.limb(at(side * 0.26, 0.62), at(side * 0.17, 0.26), s * 0.14, s * 0.11, trousers, RIDER, z=z)
            self.ellipse(*at(side * 0.18, 0.22), s * 0.07, s * 0.05, (34, 32, 32), RIDER, z=z)
            self.limb(at(side * 0.2, 1.42), at(side * 0.34, 1.14), s * 0.12, s * 0.1, _mix(coat, (0, 0, 0), 0.16), RIDER, z=z)
        torso = [at(-0.17, 0.88), at(0.17, 0.88), at(0.23, 1.42), at(0.12, 1.5), at(-0.12, 1.5), at(-0.23, 1.42)]
        self.polygon(torso, coat, RIDER, z=z)
        self.polygon([at(0, 0.88), at(0.17, 0.88), at(0.23, 1.42), at(0, 1.5)], (0, 0, 0), z=z, alpha=0.15)
        self.rider_head(at, s, 0, 1.64, skin, self.chance(0.7), z)

    def rider_head(self, at, s, dx, dy, skin: Colour, helmet: bool, z: float) -> None:
        self.limb(at(dx, dy - 0.16), at(dx, dy), s * 0.1, s * 0.1, skin, RIDER, z=z)
        self.ellipse(*at(dx, dy), s * 0.115, s * 0.125, skin, RIDER, z=z)
        colour = self.paint_colour() if helmet else self.pick(((40, 30, 24), (96, 64, 38), (190, 150, 84)))
        big = 1.3 if helmet else 1.08
        self.polygon([at(dx - 0.01 + 0.12 * big * c, dy + 0.03 + 0.12 * big * max(sn, -0.3)) for c, sn in _CIRCLE], colour, RIDER, z=z)

    # --- street furniture

    def pole(self, x: float, z: float, height: float, thick: float, colour: Colour) -> tuple[float, float, float]:
        """An upright pole; returns the picture point of its top and pixels per metre."""
        at, s = self.figure_frame(x, z, 1)
        self.shadow(x, z, 0.25, 0.15)
        (x0, y0), (_, y1) = at(0, 0), at(0, height)
        half = s * thick * 0.8
        self.polygon([(x0 - half, y0), (x0 + half, y0), (x0 + half * 0.85, y1), (x0 - half * 0.85, y1)], colour, POLE, z=z)
        lit = half * 0.5 * (1 if self.sun > 0 else -1)
        self.polygon(
            [(x0 + lit * 0.6, y0), (x0 + lit * 1.5, y0), (x0 + lit * 1.3, y1), (x0 + lit * 0.5, y1)], (255, 255, 255), z=z, alpha=0.22
        )
        self.polygon(
            [(x0 - half * 1.6, y0), (x0 + half * 1.6, y0), (x0 + half * 1.6, y0 - s * 0.25), (x0 - half * 1.6, y0 - s * 0.25)],
            colour,
            POLE,
            z=z,
        )
        return x0, y1, s

    def pole_colour(self) -> Colour:
        return self.pick(((92, 96, 100), (150, 154, 158), (52, 60, 58), (108, 80, 56), (190, 192, 190)))

    def lamp(self, x: float, z: float) -> None:
        """A street lamp: an arm over the road, or a lantern on top."""
        colour = self.pole_colour()
        height = self.uniform(4.5, 7.5)
        px, py, s = self.pole(x, z, height, self.uniform(0.2, 0.28), colour)
        towards = -1 if x > 0 else 1
        glow = (255, 236, 170) if self.weather in ("dusk", "fog", "rain") else (226, 228, 224)
        if self.chance(0.6):
            reach = self.uniform(1.2, 2.2)
            end = (px + towards * reach * s, py - 0.25 * s)
            self.limb((px, py), end, s * 0.16, s * 0.13, colour, POLE, z=z)
            self.limb(end, (end[0] + towards * 0.5 * s, end[1] + 0.05 * s), s * 0.22, s * 0.16, _mix(colour, (30, 30, 30), 0.3), POLE, z=z)
            self.ellipse(end[0] + towards * 0.25 * s, end[1] + 0.12 * s, 0.22 * s, 0.07 * s, glow, POLE, z=z)
        else:
            self.polygon(
                [(px - 0.14 * s, py), (px + 0.14 * s, py), (px + 0.24 * s, py - 0.5 * s), (px - 0.24 * s, py - 0.5 * s)], glow, POLE, z=z
            )
            cap = [(px - 0.28 * s, py - 0.5 * s), (px + 0.28 * s, py - 0.5 * s), (px, py - 0.72 * s)]
            self.polygon(cap, _mix(colour, (20, 20, 20), 0.3), POLE, z=z)

    def utility_pole(self, x: float, z: float) -> None:
        """A wooden pole with a cross-arm and wires; the wires are too thin to be labelled."""
        px, py, s = self.pole(x, z, self.uniform(6, 8.5), self.uniform(0.24, 0.32), (104, 78, 56))
        arm = py + 0.5 * s
        self.limb((px - 0.9 * s, arm), (px + 0.9 * s, arm), s * 0.16, s * 0.16, (92, 68, 48), POLE, z=z)
        for dx in (-0.8, 0.0, 0.8):
            far = self.project((x, 6.5, _FAR)).tolist()
            ends = [v * _SUPERSAMPLING for v in (px + dx * s, arm, far[0] + dx, far[1])]
            self.opaque.line(ends, fill=self.shade((40, 40, 44), 1, z), width=1)

    def bollards(self, x: float, z: float) -> None:
        colour = self.pick(((52, 56, 60), (120, 122, 126), (196, 60, 48)))
        for i in (2, 1, 0):
            px, py, s = self.pole(x, z + i * 1.6, 0.95, 0.24, colour)
            self.polygon(
                [(px - 0.12 * s, py), (px + 0.12 * s, py), (px + 0.12 * s, py + 0.2 * s), (px - 0.12 * s, py + 0.2 * s)],
                (236, 234, 226),
                POLE,
                z=z,
            )

    def traffic_light(self, x: float, z: float) -> None:
        """Lights on a pole, or on an arm over the road too."""
        colour = self.pole_colour()
        gantry = self.chance(0.45)
        height = self.uniform(4.6, 5.6) if gantry else self.uniform(2.6, 3.2)
        px, py, s = self.pole(x, z, height, 0.24, colour)
        state = self.pick((0, 1, 2), (0.45, 0.15, 0.4))
        housing = self.pick(((34, 36, 38), (60, 66, 58), (214, 170, 40)), (0.65, 0.15, 0.2))
        spots = [(px, py + (0.1 if not gantry else 2.2) * s)]
        if gantry:
            reach = (-1 if x > 0 else 1) * self.uniform(2.2, 3.6) * s
            self.limb((px, py), (px + reach, py), s * 0.18, s * 0.15, colour, POLE, z=z)
            spots.append((px + reach, py - 0.1 * s))
        for cx, top in spots:
            self.light_box(cx, top, s * self.uniform(1.1, 1.25), state, housing, z)
        if self.chance(0.35):
            self.sign_plate(px, py + (1.7 if not gantry else 1.2) * s, s * 0.85, z)

    def light_box(self, cx: float, top: float, s: float, state: int, housing: Colour, z: float) -> None:
        half, high = 0.27 * s, 1.3 * s
        if self.chance(0.35):
            edge = 0.1 * s
            board = [
                (cx - half - edge, top - edge),
                (cx + half + edge, top - edge),
                (cx + half + edge, top + high + edge),
                (cx - half - edge, top + high + edge),
            ]
            self.polygon(board, (228, 228, 224), TRAFFIC_LIGHT, z=z)
        self.polygon([(cx - half, top), (cx + half, top), (cx + half, top + high), (cx - half, top + high)], housing, TRAFFIC_LIGHT, z=z)
        lamps = ((255, 44, 40), (255, 196, 40), (60, 240, 130))
        for i, bright in enumerate(lamps):
            cy = top + (0.24 + 0.41 * i) * s
            self.ellipse(cx, cy - 0.03 * s, 0.2 * s, 0.19 * s, _mix(housing, (0, 0, 0), 0.6), z=z)
            self.ellipse(cx, cy, 0.17 * s, 0.17 * s, bright if i == state else _mix(bright, (24, 24, 24), 0.78), z=z)
            if i == state:
                self.ellipse(cx, cy, 0.3 * s, 0.3 * s, bright, z=z, alpha=0.22)

    def sign(self, x: float, z: float) -> None:
        """One or two signs on a pole."""
        height = self.uniform(2.5, 3.1)
        px, py, s = self.pole(x, z, height, self.uniform(0.15, 0.2), self.pick(((150, 154, 158), (110, 112, 116))))
        self.sign_plate(px, py + 0.1 * s, s * self.uniform(1.15, 1.4), z)
        if self.chance(0.35):
            self.sign_plate(px, py + 1.15 * s, s * 0.8, z)

    def sign_plate(self, cx: float, cy: float, s: float, z: float) -> None:
        """A sign of half a metre around (cx, cy)."""
        kind = self.pick(("ban", "warning", "stop", "order", "direction", "parking", "yield"))
        red, white, blue, black = (204, 28, 36), (244, 244, 240), (28, 84, 176), (26, 26, 28)

        def shape(points, radius: float, colour: Colour, label: int | None = None) -> None:
            self.polygon([(cx + radius * s * c, cy + radius * s * d) for c, d in points], colour, label, z=z)

        up = [(0, -1), (0.95, 0.68), (-0.95, 0.68)]
        down = [(0, 1), (0.95, -0.68), (-0.95, -0.68)]
        octagon = [(math.cos(math.pi * (i + 0.5) / 4), math.sin(math.pi * (i + 0.5) / 4)) for i in range(8)]
        square = [(-1, -1), (1, -1), (1, 1), (-1, 1)]

        def bar(x0, y0, x1, y1, colour: Colour) -> None:
            corners = [(cx + x0 * s, cy + y0 * s), (cx + x1 * s, cy + y0 * s), (cx + x1 * s, cy + y1 * s), (cx + x0 * s, cy + y1 * s)]
            self.polygon(corners, colour, z=z)

        if kind == "ban":
            shape(_CIRCLE, 0.5, red, TRAFFIC_SIGN)
            if self.chance(0.4):
                bar(-0.34, -0.09, 0.34, 0.09, white)
            else:
                shape(_CIRCLE, 0.37, white)
                bar(-0.2, -0.16, -0.05, 0.16, black)
                bar(0.04, -0.16, 0.2, 0.16, black)
        elif kind == "warning":
            yellow = self.chance(0.4)
            shape(up, 0.62, red, TRAFFIC_SIGN)
            shape(up, 0.42, (248, 206, 50) if yellow else white)
            bar(-0.05, -0.16, 0.05, 0.1, black)
            bar(-0.05, 0.14, 0.05, 0.22, black)
        elif kind == "yield":
            shape(down, 0.6, red, TRAFFIC_SIGN)
            shape(down, 0.38, white)
        elif kind == "stop":
            shape(octagon, 0.54, white, TRAFFIC_SIGN)
            shape(octagon, 0.49, red)
            for i in range(4):
                bar(-0.36 + i * 0.2, -0.12, -0.24 + i * 0.2, 0.12, white)
        elif kind == "order":
            shape(_CIRCLE, 0.5, white, TRAFFIC_SIGN)
            shape(_CIRCLE, 0.46, blue)
            bar(-0.06, -0.1, 0.06, 0.3, white)
            self.polygon([(cx - 0.2 * s, cy - 0.08 * s), (cx + 0.2 * s, cy - 0.08 * s), (cx, cy - 0.34 * s)], white, z=z)
        elif kind == "parking":
            shape(square, 0.45, white, TRAFFIC_SIGN)
            shape(square, 0.41, blue)
            bar(-0.18, -0.28, -0.06, 0.3, white)
            self.ellipse(cx + 0.02 * s, cy - 0.1 * s, 0.2 * s, 0.18 * s, white, z=z)
            self.ellipse(cx + 0.02 * s, cy - 0.1 * s, 0.1 * s, 0.08 * s, blue, z=z)
        else:
            colour = self.pick((blue, (30, 120, 74), (244, 200, 50), white))
            ink = white if colour in (blue, (30, 120, 74)) else black
            points = [(-0.8, -0.3), (0.62, -0.3), (0.9, 0), (0.62, 0.3), (-0.8, 0.3)]
            mirror = self.pick((-1, 1))
            self.polygon([(cx + mirror * 1.08 * a * s, cy + 1.2 * b * s) for a, b in points], ink, TRAFFIC_SIGN, z=z)
            self.polygon([(cx + mirror * a * s, cy + b * s) for a, b in points], colour, TRAFFIC_SIGN, z=z)
            at = -0.6
            while at < 0.35:
                wide = self.uniform(0.06, 0.2)
                bar(at, -0.12, at + wide, 0.1, ink)
                at += wide + 0.06

    # --- who stands where

    def claim(self, x0: float, x1: float, z0: float, z1: float) -> bool:
        """Take a place on the ground, unless something is there already."""
        if any(x0 < b1 and x1 > b0 and z0 < d1 and z1 > d0 for b0, b1, d0, d1 in self.taken):
            return False
        self.taken.append((x0, x1, z0, z1))
        return True

    def add(self, make: Callable, x: float, z: float, half: float, length: float, *rest) -> None:
        if self.claim(x - half, x + half, z - 0.5, z + length + 0.8):
            self.things.append((z, lambda: make(x, z, *rest)))

    def traffic(self) -> None:
        """Vehicles: in both lanes, parked at the kerb, and crossing."""
        lane = self.road_half * 0.48
        if self.rails and self.chance(0.8):
            heading = self.pick(("away", "towards"))
            self.add(self.tram, self.tram_side * self.road_half * 0.45, self.uniform(8, 16), 1.3, 22, heading)
        if self.chance(0.12):
            z = self.uniform(11, 20)
            self.add_crossing(self.pick((self.bus, self.truck)), z, 10)
        big = {self.bus: 0.3, self.truck: 0.34}
        for make, probability in big.items():
            if self.chance(probability):
                side = self.pick((-1, 1))
                x = side * lane
                self.add(make, x, self.uniform(7, 16), 1.4, 11, "away" if side > 0 else "towards")
        for side in (-1, 1):
            z = self.uniform(6.5, 15)
            for _ in range(int(self.rng.integers(0, 3))):
                self.add(self.car, side * lane + self.uniform(-0.3, 0.3), z, 1.0, 4.8, "away" if side > 0 else "towards")
                z += self.uniform(8, 22)
        if self.chance(0.2):
            self.add_crossing(self.car, self.uniform(10, 24), 4.6)
        if self.road_half > 4.4 and self.chance(0.6):
            side = self.pick((-1, 1))
            z = self.uniform(5, 12)
            while z < 20:
                if self.chance(0.7):
                    self.add(self.car, side * (self.road_half - 1.0), z, 0.95, 4.8, self.pick(("away", "towards")))
                z += self.uniform(5.6, 8)

    def add_crossing(self, make: Callable, z: float, length: float) -> None:
        heading = self.pick(("left", "right"))
        x = self.uniform(-0.4, 0.4) * self.road_half - length / 2
        if self.claim(x - 0.5, x + length + 0.5, z - 1.8, z + 1.8):
            self.things.append((z - 1.0, lambda: make(x, z, heading)))

    def walkway(self, side: int) -> float:
        """Somewhere across the pavement."""
        return side * self.uniform(self.kerb + 0.5, self.lot - 0.4)

    def people(self) -> None:
        crowd = self.pick((0.5, 1.0, 2.0))
        for side in (-1, 1):
            for _ in range(int(self.rng.poisson(1.6 * crowd))):
                self.add(self.person, self.walkway(side), 6 + 6 * self.rng.random(), 0.5, 0.4)
        for _ in range(int(self.rng.poisson(0.5))):
            self.add(self.person, self.uniform(-0.9, 0.9) * self.road_half, self.uniform(7, 11), 0.6, 0.4)
        for make, count in ((self.bicycle, 0.8), (self.motorcycle, 0.8)):
            for _ in range(int(self.rng.poisson(count))):
                behind = self.chance(0.5)
                x = self.uniform(-0.9, 0.9) * self.road_half
                self.add(make, x, self.uniform(6, 10), 0.8 if behind else 1.5, 0.8, True, behind)
        for make, probability in ((self.bicycle, 0.4), (self.motorcycle, 0.38)):
            if self.chance(probability):
                side, z = self.pick((-1, 1)), self.uniform(6, 9)
                for i in range(int(self.rng.integers(1, 4))):
                    self.add(make, side * (self.kerb + self.uniform(0.7, 1.3)), z + 1.5 * i, 1.1, 0.2, False, self.chance(0.15))

    def furniture(self) -> None:
        edge = self.kerb + 0.35
        for side in (-1, 1):
            z = self.uniform(6, 12)
            kind = self.pick((self.lamp, self.utility_pole), (0.75, 0.25))
            while z < 20:
                if self.chance(0.75):
                    self.add(kind, side * edge, z, 0.2, 0.2)
                z += self.uniform(8, 13)
            if self.chance(0.5):
                self.add(self.traffic_light, side * edge, self.uniform(6.5, 11), 0.3, 0.3)
            for _ in range(int(self.rng.poisson(0.9))):
                self.add(self.sign, side * (edge + self.uniform(0, 0.3)), self.uniform(6, 11), 0.35, 0.3)
            if self.chance(0.15):
                self.add(self.bollards, side * edge, self.uniform(7, 12), 0.2, 3.4)
            z = self.uniform(5, 15)
            trees = self.chance(0.4)
            while trees and z < 60:
                self.add(self.tree, side * (self.kerb + 0.5), z, 0.4, 0.5, self.uniform(4, 7.5))
                z += self.uniform(7, 14)

    # --- all of it

    def cast_shadows(self) -> None:
        """The shade of the houses on the sun's side, over pavement and road."""
        if self.sun_share < 0.3 or abs(self.sun) < 0.3 or not self.chance(0.7):
            return
        side = 1 if self.sun > 0 else -1
        z = 2.0
        while z < 60:
            length = self.uniform(4, 14)
            if self.chance(0.65):
                reach = side * self.lot - side * self.uniform(1.5, self.lot + 2)
                self.ground(side * self.lot, reach, z, z + length, (20, 22, 40), alpha=0.34)
            z += length

    def paint(self) -> tuple[np.ndarray, np.ndarray]:
        self.sky()
        self.backdrop()
        self.street()
        self.end_of_street()
        self.cast_shadows()
        self.lots()
        self.traffic()
        self.people()
        self.furniture()
        for _, thing in sorted(self.things, key=lambda item: -item[0]):
            thing()
        labels = np.asarray(self.labels)[_SUPERSAMPLING // 2 :: _SUPERSAMPLING, _SUPERSAMPLING // 2 :: _SUPERSAMPLING].copy()
        image = np.array(self.image.reduce(_SUPERSAMPLING), dtype=np.float32)
        return self.finish(image, labels), labels

    def finish(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Surface texture on the ground, falling rain or snow, the camera's colour cast, contrast and noise."""
        height, width = labels.shape
        y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
        first = math.ceil(self.horizon)  # there is no ground above
        z = self.focal * self.camera_y / (y[first:] - self.horizon + 0.5)
        across = (x - self.middle) * z / self.focal
        grain = self.rng.normal(0, 1, (128, 128)).astype(np.float32)
        coarse = np.asarray(Image.fromarray(grain[:32, :32]).resize((128, 128), Image.Resampling.BICUBIC))
        texture = grain[(across * 14).astype(np.int32) & 127, (z * 10).astype(np.int32) & 127] * 0.7
        texture += coarse[(across * 9).astype(np.int32) & 127, (z * 5).astype(np.int32) & 127] * 0.9
        strength = np.zeros(256, np.float32)
        strength[[ROAD, SIDEWALK, TERRAIN]] = self.uniform(0.02, 0.05), self.uniform(0.015, 0.035), self.uniform(0.05, 0.1)
        image[first:] *= (1 + strength[labels[first:]] * np.clip(14 / z, 0, 1) * texture)[..., None]
        image = self.weather_over(image)
        image *= self.rng.uniform(0.94, 1.06, 3).astype(np.float32)  # the camera's white balance
        image -= 118
        image *= self.uniform(0.88, 1.1)  # contrast around a middle grey
        image += 118
        image += self.uniform(-10, 10)
        radius = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 2
        image *= (1 - self.uniform(0, 0.22) * radius)[..., None]
        noise = self.rng.standard_normal((height, width, 3), dtype=np.float32)
        noise *= self.uniform(1.5, 4)
        image += noise
        return np.clip(np.rint(image, out=image), 0, 255).astype(np.uint8)

    def weather_over(self, image: np.ndarray) -> np.ndarray:
        if self.weather not in ("rain", "snow"):
            return image
        height, width = image.shape[:2]
        layer = Image.new("L", (width, height))
        pen = ImageDraw.Draw(layer)
        count = int(width * height / 1300)
        px, py, size = self.rng.uniform(0, width, count), self.rng.uniform(0, height, count), self.rng.uniform(0.5, 1, count)
        for cx, cy, s in zip(px.tolist(), py.tolist(), size.tolist()):
            unit = s * height / 256
            if self.weather == "rain":
                pen.line((cx, cy, cx + 1.5 * unit, cy + 11 * unit), fill=int(70 * s))
            else:
                pen.ellipse((cx - 1.1 * unit, cy - 1.1 * unit, cx + 1.1 * unit, cy + 1.1 * unit), fill=int(210 * s))
        cover = np.asarray(layer, dtype=np.float32)[..., None] / 255
        return image + (240 - image) * cover
