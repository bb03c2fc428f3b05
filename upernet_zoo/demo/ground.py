"""The street and its sidewalks."""

from __future__ import annotations

import numpy as np

from .canvas import CIRCLE, NEAR, ROAD, SIDEWALK, TERRAIN, Color, hsv, mix
from .sky import Sky

__all__ = ["Ground"]


class Ground(Sky):
    """Draws the street, its markings and grass."""

    def street(self) -> None:
        """Road, curbs, sidewalks, strips of grass, and everything painted on them."""
        tone = hsv(self.pick((0.6, 0.08, 0.75, 0.02)), self.uniform(0, 0.16), self.uniform(0.26, 0.62))
        sidewalk = hsv(self.pick((0.08, 0.6, 0.02, 0.12)), self.uniform(0, 0.3), self.uniform(0.42, 0.86))
        if self.weather == "snow":
            sidewalk = mix(sidewalk, (235, 238, 245), self.uniform(0.3, 0.8))
        self.grass = self.grass_color()
        self.ground(-400, 400, NEAR, 4000, self.grass, TERRAIN)
        lit = 0.92 + 0.1 * self.sun_share
        self.ground(-self.road_half, self.road_half, NEAR, 400, tone, ROAD, light=lit)
        for side in (-1, 1):
            if self.curb > self.road_half:
                self.ground(side * self.road_half, side * self.curb, NEAR, 400, mix(self.grass, (90, 90, 60), 0.15), TERRAIN)
            self.ground(side * self.curb, side * self.lot, NEAR, 400, sidewalk, SIDEWALK, light=lit)
            joint = mix(sidewalk, (40, 40, 40), 0.3)
            step = self.uniform(0.9, 1.8)
            for z in np.arange(3, 26, step):
                self.ground(side * self.curb, side * self.lot, z, z + 0.05 + z * 0.003, joint, light=lit, alpha=0.6)
            for x in np.arange(self.curb + 0.7, self.lot, 0.9):
                self.ground(side * x, side * (x + 0.05), 3, 26, joint, light=lit, alpha=0.6)
            edge = mix(sidewalk, (230, 230, 230), 0.4)
            self.ground(side * self.curb, side * (self.curb + 0.18), NEAR, 200, edge, SIDEWALK, light=lit)
            self.ground(side * (self.road_half - 0.1), side * self.road_half, NEAR, 200, mix(tone, (20, 20, 20), 0.4), light=lit)
        self.tone, self.sidewalk = tone, sidewalk
        # repairs, cracks and manholes
        for _ in range(self.rng.integers(0, 5)):
            x, z = self.uniform(-1, 1) * self.road_half * 0.8, self.uniform(5, 24)
            wide, deep = self.uniform(0.4, 1.8), self.uniform(0.8, 5)
            self.ground(x, x + wide, z, z + deep, mix(tone, (20, 20, 22), self.uniform(0.1, 0.4)), alpha=0.7)
        if self.chance(0.5):
            x, z = self.uniform(-0.6, 0.6) * self.road_half, self.uniform(6, 16)
            self.quad([(x + 0.4 * c, 0, z + 0.4 * s) for c, s in CIRCLE], mix(tone, (10, 10, 10), 0.5))
        # markings
        paint = mix((244, 244, 238), tone, self.uniform(0.05, 0.45))
        center = self.pick(("dashed", "solid", "double", "none"), (0.5, 0.2, 0.15, 0.15))
        center_paint = mix((236, 190, 60), tone, 0.2) if self.chance(0.25) else paint
        if center == "dashed":
            for z in np.arange(self.uniform(1, 4), 80, 6):
                self.ground(-0.08, 0.08, z, z + 3, center_paint)
        elif center != "none":
            for x in (0.0,) if center == "solid" else (-0.15, 0.15):
                self.ground(x - 0.07, x + 0.07, NEAR, 120, center_paint)
        if self.chance(0.5):
            for side in (-1, 1):
                self.ground(side * (self.road_half - 0.55), side * (self.road_half - 0.4), NEAR, 120, paint)
        self.tram_side = self.pick((-1, 1))
        self.rails = self.chance(0.34)
        if self.rails:
            middle = self.tram_side * self.road_half * 0.45
            for x in (middle - 0.75, middle + 0.75):
                self.ground(x - 0.07, x + 0.07, NEAR, 200, (70, 66, 64))
                self.ground(x - 0.03, x + 0.03, NEAR, 200, (176, 176, 180))
        if self.chance(0.4):
            z = self.uniform(8, 16)
            for x in np.arange(-self.road_half + 0.2, self.road_half - 0.5, 1.0):
                self.ground(x, x + 0.52, z, z + 3.0, paint, alpha=0.9)
        if self.chance(0.4):
            self.arrow(self.pick((-1, 1)) * self.road_half / 2, self.uniform(8, 18), paint)

    def arrow(self, x: float, z: float, paint: Color) -> None:
        self.ground(x - 0.12, x + 0.12, z, z + 2.2, paint)
        self.quad([(x - 0.45, 0, z + 2.2), (x + 0.45, 0, z + 2.2), (x, 0, z + 3.8)], paint)

    def grass_color(self) -> Color:
        if self.weather == "snow" and self.chance(0.7):
            return hsv(0.6, self.uniform(0.01, 0.06), self.uniform(0.82, 0.95))
        if self.chance(0.3):  # dry grass, sand, soil
            return hsv(self.uniform(0.07, 0.15), self.uniform(0.25, 0.55), self.uniform(0.4, 0.75))
        return hsv(self.uniform(0.19, 0.34), self.uniform(0.35, 0.75), self.uniform(0.32, 0.66))
