"""Street scenes drawn from a seed, with their label maps: the demo's data, made without a download and free of anybody's rights.

A scene is laid out in meters on a ground plane (a street with its sidewalks, lots on both sides, things that stand or drive on it),
projected through a pinhole camera and painted from far to near. The color picture is drawn three times as large and averaged down, so its
edges are smooth; the label map takes the middle pixel of each 3x3, so its edges are crisp and lie where the picture's are.
Classes are the 19 of Cityscapes, by train id. As in Cityscapes, what one sees through a fence, a wheel or the crown of a tree
carries the label of the thing in front, and a trunk is vegetation.

Only NumPy and Pillow are used. The same seed gives the same bytes for the same versions of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .canvas import ROAD, SIDEWALK, SUPERSAMPLING, TERRAIN
from .furniture import Furniture

__all__ = ["Scene", "draw"]


class Scene(Furniture):
    """One scene: who and what is where, and the picture."""

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
        """Vehicles: in both lanes, parked at the curb, and crossing."""
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
        """Somewhere across the sidewalk."""
        return side * self.uniform(self.curb + 0.5, self.lot - 0.4)

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
                    self.add(make, side * (self.curb + self.uniform(0.7, 1.3)), z + 1.5 * i, 1.1, 0.2, False, self.chance(0.15))

    def furniture(self) -> None:
        edge = self.curb + 0.35
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
                self.add(self.tree, side * (self.curb + 0.5), z, 0.4, 0.5, self.uniform(4, 7.5))
                z += self.uniform(7, 14)

    def cast_shadows(self) -> None:
        """The shade of the houses on the sun's side, over sidewalk and road."""
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
        labels = np.asarray(self.labels)[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING].copy()
        image = np.array(self.image.reduce(SUPERSAMPLING), dtype=np.float32)
        return self.finish(image, labels), labels

    def finish(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Surface texture on the ground, falling rain or snow, the camera's color cast, contrast and noise."""
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
        image *= self.uniform(0.88, 1.1)  # contrast around a middle gray
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


def draw(seed: int, size: tuple[int, int] = (256, 512)) -> tuple[np.ndarray, np.ndarray]:
    """Draw the street scene of a seed.

    Args:
        seed: any whole number from 0 up.
        size: (height, width) in pixels. The camera's field of view follows the height.

    Returns:
        The picture, (height, width, 3) uint8 RGB, and its labels, (height, width) uint8 Cityscapes train ids 0..18. Every pixel is
        labeled.
    """
    return Scene(seed, size).paint()
