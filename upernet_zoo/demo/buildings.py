"""The lots on both sides: buildings, parks, yards, fences and walls."""

from __future__ import annotations

import math

import numpy as np

from .canvas import BUILDING, FAR, FENCE, SIDEWALK, SUPERSAMPLING, TERRAIN, WALL, Color, hsv, mix
from .plants import Plants

__all__ = ["Buildings"]


class Buildings(Plants):
    """Draws what is on the lots beside the street."""

    def lots(self) -> None:
        """Fill both sides with lots, then draw all from far to near."""
        town = self.uniform(0.3, 1.0)
        pieces = []
        for side in (-1, 1):
            z = self.uniform(2, 6)
            while z < FAR:
                length = self.uniform(8, 20)
                kind = "building" if self.chance(town * 0.75) else self.pick(("park", "house", "yard"), (0.4, 0.3, 0.3))
                pieces.append((z, min(z + length, FAR), side, kind))
                z += length + (self.uniform(0, 4) if self.chance(0.3) else 0)
        for z0, z1, side, kind in sorted(pieces, key=lambda p: -p[0]):
            getattr(self, kind)(side, z0, z1)

    def end_of_street(self) -> None:
        """What closes the street far away."""
        kind = self.pick(("open", "building", "trees"), (0.35, 0.4, 0.25))
        z = FAR
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
        """A town house whose front is at the sidewalk."""
        self.ground(side * self.lot, side * 40, z0, z1, self.sidewalk, SIDEWALK)
        inner, outer = side * self.lot, side * (self.lot + self.uniform(8, 14))
        self.box_building(min(inner, outer), max(inner, outer), z0, z1, self.uniform(5.5, 19))

    def wall_color(self) -> Color:
        kind = self.pick(("plaster", "brick", "gray", "bold"), (0.52, 0.1, 0.25, 0.13))
        if kind == "brick":
            return hsv(self.uniform(0.0, 0.06), self.uniform(0.4, 0.65), self.uniform(0.38, 0.65))
        if kind == "gray":
            return hsv(self.uniform(0.5, 0.7), self.uniform(0, 0.15), self.uniform(0.35, 0.8))
        if kind == "bold":
            return hsv(self.uniform(0, 1), self.uniform(0.3, 0.6), self.uniform(0.5, 0.85))
        return hsv(self.uniform(0.05, 0.15), self.uniform(0.08, 0.4), self.uniform(0.65, 0.93))

    def box_building(self, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
        """A house with windows and a flat or a pitched roof, its ridge along the street."""
        color = self.wall_color()
        faces = self.solid(lambda u, v, y: (v, y, u), (z0, z1, x0, x1), -0.1, (z0, z1, x0, x1), height, color, BUILDING)
        trim = mix(color, self.pick(((250, 250, 245), (60, 55, 55))), 0.55)
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
                self.facade(corners, height, light, style, color)
        roof = self.pick(((120, 62, 48), (82, 78, 82), (140, 88, 62), (64, 58, 66)))
        if self.chance(0.55) and x1 - x0 < 15:
            middle, ridge = (x0 + x1) / 2, height + self.uniform(1.6, 3.6)
            if (z0 + z1) / 2 < 70:
                self.quad([(x0, height, z0), (middle, ridge, z0), (x1, height, z0)], color, BUILDING, light=self.facing(0))
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
                    mix(roof, (150, 90, 70), 0.5),
                    BUILDING,
                )
        else:
            for name, (corners, light) in faces.items():
                if name != "top":
                    self.patch(corners, 0, 1, 1 - 0.45 / height, 1, trim, light=light)

    def facade(self, corners, height: float, light: float, style: dict, color: Color) -> None:
        """Windows in rows, a plinth, courses of brick, and perhaps a shop on the ground floor."""
        length = float(np.linalg.norm(corners[1] - corners[0]))
        near = float(corners[:, 2].min())
        floors, bays = max(int(height / style["floor"]), 1), max(int(length / style["bay"]), 1)
        if style["bricks"] and near < 30:
            rows = np.arange(0.0, 1.0, 0.5 / height)
            zero = np.zeros_like(rows)
            dark = [mix(color, (30, 20, 20), 0.22)] * len(rows)
            self.patches(corners, zero, zero + 1, rows, rows + 0.09 / height, dark, light=light, alpha=0.7)
        self.patch(corners, 0, 1, 0, 0.5 / height, mix(color, (60, 58, 56), 0.5), light=light)
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
            plain = mix(style["glass"], self.sky_colors[1] if tone > 0 else (20, 22, 30), abs(tone))
            glass.append((255, 214, 130) if lit else plain)
        self.patches(corners, a - half_a, a + half_a, b - half_b, b + half_b, glass, light=light if not evening else 1.1)
        if near < 32:
            bars = [style["trim"]] * len(a)
            self.patches(corners, a - 0.04 / length, a + 0.04 / length, b - half_b, b + half_b, bars, light=light)
            self.patches(corners, a - half_a, a + half_a, b + half_b * 0.25, b + half_b * 0.25 + 0.07 / height, bars, light=light)
        if first:
            top = 0.8 / floors
            shopfront = self.paint_color()
            self.patch(corners, 0.02, 0.98, 0, top, mix(shopfront, (40, 40, 40), 0.4), light=light)
            self.patch(corners, 0.02, 0.98, top * 0.84, top, shopfront, light=light)
            for i in range(max(bays // 2, 1)):
                n = max(bays // 2, 1)
                self.patch(
                    corners, (i + 0.08) / n, (i + 0.92) / n, top * 0.14, top * 0.8, mix(style["glass"], (230, 220, 190), 0.3), light=light
                )
                self.patch(corners, (i + 0.66) / n, (i + 0.7) / n, 0, top * 0.8, mix(shopfront, (30, 30, 30), 0.5), light=light)
        else:
            at = (self.rng.integers(0, bays) + 0.5) / bays
            door = hsv(self.uniform(0, 1), self.uniform(0.2, 0.7), self.uniform(0.2, 0.55))
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
        tone = mix(self.grass, (110, 100, 70), self.uniform(0, 0.25))
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
        wood = hsv(self.uniform(0.07, 0.11), self.uniform(0.5, 0.75), self.uniform(0.45, 0.7))
        if kind == self.fence:
            look["color"] = self.pick(((235, 235, 230), wood)) if look["style"] == "pickets" else wood
        else:
            look["color"] = hsv(self.uniform(0.0, 0.05), self.uniform(0.4, 0.65), self.uniform(0.3, 0.5))
        x = side * (self.lot + 0.15)
        if self.chance(0.65):
            out = side * (self.lot + self.uniform(8, 16))
            corners = [(x, 0, z0), (out, 0, z0), (out, look["height"], z0), (x, look["height"], z0)]
            kind(corners, look, self.facing(0))
        corners = [(x, 0, z0), (x, 0, z1), (x, look["height"], z1), (x, look["height"], z0)]
        kind(corners, look, self.facing(-side))

    def fence(self, corners, look: dict, light: float) -> None:
        """A fence on a face of four world corners: posts, rails and bars; all of the face is labeled, gaps too."""
        corners = np.array(corners, dtype=np.float64)
        points = self.project(corners)
        self.marker.polygon([v * SUPERSAMPLING for v in points.ravel().tolist()], fill=FENCE)
        length, near, color = float(np.linalg.norm(corners[1] - corners[0])), float(corners[:, 2].min()), look["color"]
        step, share = {"pickets": (0.24, 0.62), "planks": (0.3, 0.93)}[look["style"]]
        step *= 1 if near < 20 else 2
        a = np.arange(0, length, step) / length
        top = 0.94 + 0.06 * (np.arange(len(a)) % 2) if look["style"] == "pickets" else np.ones(len(a))
        tones = [mix(color, (25, 22, 20), t) for t in self.rng.uniform(0, 0.22, len(a))]
        self.patches(corners, a, np.minimum(a + share * step / length, 1), np.full(len(a), 0.04), top, tones, light=light)
        thick = 0.09 / look["height"]
        for b in (0.2, 0.55, 0.9):
            self.patch(corners, 0, 1, b - thick / 2, b + thick / 2, mix(color, (25, 22, 20), 0.2), light=light)
        a = np.append(np.arange(0, length, 2.4), length - 0.1) / length
        posts = [mix(color, (25, 22, 20), 0.3)] * len(a)
        self.patches(corners, a, a + 0.13 / length, np.zeros(len(a)), np.full(len(a), 1.0), posts, light=light)

    def garden_wall(self, corners, look: dict, light: float) -> None:
        """A wall of brick or stone with a coping."""
        corners = np.array(corners, dtype=np.float64)
        length, near, color = float(np.linalg.norm(corners[1] - corners[0])), float(corners[:, 2].min()), look["color"]
        self.quad(corners, color, WALL, light=light)
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
                    mix(color, (40, 40, 44), t) if t > 0 else mix(color, (240, 236, 228), -t) for t in self.rng.uniform(-0.3, 0.4, len(a))
                ]
                wide = self.rng.uniform(0.5, 0.95, len(a)) * long / length
                self.patches(corners, a, np.minimum(a + wide, 1), b + 0.06 / rows, b + 0.92 / rows, tones, light=light)
            else:
                a, b = np.meshgrid(np.arange(count), np.arange(rows))
                shift = (b % 2) * 0.5
                a = np.clip((a + shift) * long / length, 0, 1).ravel()
                b = (b / rows).ravel()
                mortar = [mix(color, (205, 198, 188), 0.4)] * rows
                lines, zero = np.arange(rows) / rows, np.zeros(rows)
                self.patches(corners, zero, zero + 1, lines, lines + 0.16 / rows, mortar, light=light)
                if near < 22:
                    self.patches(corners, a, np.minimum(a + 0.035 / length, 1), b, b + 1 / rows, [mortar[0]] * len(a), light=light)
        cap = mix(color, self.pick(((235, 232, 225), (80, 78, 78))), 0.5)
        self.patch(corners, 0, 1, 1 - 0.16 / look["height"], 1, cap, light=light * 1.04)
        self.patch(corners, 0, 1, 1 - 0.22 / look["height"], 1 - 0.16 / look["height"], mix(color, (20, 20, 20), 0.5), light=light)
