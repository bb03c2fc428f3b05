"""Street furniture: poles, lamps, traffic lights and signs."""

from __future__ import annotations

import math

from .canvas import CIRCLE, FAR, POLE, SUPERSAMPLING, TRAFFIC_LIGHT, TRAFFIC_SIGN, Color, mix
from .figures import Figures

__all__ = ["Furniture"]


class Furniture(Figures):
    """Draws street furniture."""

    def pole(self, x: float, z: float, height: float, thick: float, color: Color) -> tuple[float, float, float]:
        """An upright pole; returns the picture point of its top and pixels per meter."""
        at, s = self.figure_frame(x, z, 1)
        self.shadow(x, z, 0.25, 0.15)
        (x0, y0), (_, y1) = at(0, 0), at(0, height)
        half = s * thick * 0.8
        self.polygon([(x0 - half, y0), (x0 + half, y0), (x0 + half * 0.85, y1), (x0 - half * 0.85, y1)], color, POLE, z=z)
        lit = half * 0.5 * (1 if self.sun > 0 else -1)
        self.polygon(
            [(x0 + lit * 0.6, y0), (x0 + lit * 1.5, y0), (x0 + lit * 1.3, y1), (x0 + lit * 0.5, y1)], (255, 255, 255), z=z, alpha=0.22
        )
        self.polygon(
            [(x0 - half * 1.6, y0), (x0 + half * 1.6, y0), (x0 + half * 1.6, y0 - s * 0.25), (x0 - half * 1.6, y0 - s * 0.25)],
            color,
            POLE,
            z=z,
        )
        return x0, y1, s

    def pole_color(self) -> Color:
        return self.pick(((92, 96, 100), (150, 154, 158), (52, 60, 58), (108, 80, 56), (190, 192, 190)))

    def lamp(self, x: float, z: float) -> None:
        """A street lamp: an arm over the road, or a lantern on top."""
        color = self.pole_color()
        height = self.uniform(4.5, 7.5)
        px, py, s = self.pole(x, z, height, self.uniform(0.2, 0.28), color)
        towards = -1 if x > 0 else 1
        glow = (255, 236, 170) if self.weather in ("dusk", "fog", "rain") else (226, 228, 224)
        if self.chance(0.6):
            reach = self.uniform(1.2, 2.2)
            end = (px + towards * reach * s, py - 0.25 * s)
            self.limb((px, py), end, s * 0.16, s * 0.13, color, POLE, z=z)
            self.limb(end, (end[0] + towards * 0.5 * s, end[1] + 0.05 * s), s * 0.22, s * 0.16, mix(color, (30, 30, 30), 0.3), POLE, z=z)
            self.ellipse(end[0] + towards * 0.25 * s, end[1] + 0.12 * s, 0.22 * s, 0.07 * s, glow, POLE, z=z)
        else:
            self.polygon(
                [(px - 0.14 * s, py), (px + 0.14 * s, py), (px + 0.24 * s, py - 0.5 * s), (px - 0.24 * s, py - 0.5 * s)], glow, POLE, z=z
            )
            cap = [(px - 0.28 * s, py - 0.5 * s), (px + 0.28 * s, py - 0.5 * s), (px, py - 0.72 * s)]
            self.polygon(cap, mix(color, (20, 20, 20), 0.3), POLE, z=z)

    def utility_pole(self, x: float, z: float) -> None:
        """A wooden pole with a cross-arm and wires; the wires are too thin to be labeled."""
        px, py, s = self.pole(x, z, self.uniform(6, 8.5), self.uniform(0.24, 0.32), (104, 78, 56))
        arm = py + 0.5 * s
        self.limb((px - 0.9 * s, arm), (px + 0.9 * s, arm), s * 0.16, s * 0.16, (92, 68, 48), POLE, z=z)
        for dx in (-0.8, 0.0, 0.8):
            far = self.project((x, 6.5, FAR)).tolist()
            ends = [v * SUPERSAMPLING for v in (px + dx * s, arm, far[0] + dx, far[1])]
            self.opaque.line(ends, fill=self.shade((40, 40, 44), 1, z), width=1)

    def bollards(self, x: float, z: float) -> None:
        color = self.pick(((52, 56, 60), (120, 122, 126), (196, 60, 48)))
        for i in (2, 1, 0):
            px, py, s = self.pole(x, z + i * 1.6, 0.95, 0.24, color)
            self.polygon(
                [(px - 0.12 * s, py), (px + 0.12 * s, py), (px + 0.12 * s, py + 0.2 * s), (px - 0.12 * s, py + 0.2 * s)],
                (236, 234, 226),
                POLE,
                z=z,
            )

    def traffic_light(self, x: float, z: float) -> None:
        """Lights on a pole, or on an arm over the road too."""
        color = self.pole_color()
        gantry = self.chance(0.45)
        height = self.uniform(4.6, 5.6) if gantry else self.uniform(2.6, 3.2)
        px, py, s = self.pole(x, z, height, 0.24, color)
        state = self.pick((0, 1, 2), (0.45, 0.15, 0.4))
        housing = self.pick(((34, 36, 38), (60, 66, 58), (214, 170, 40)), (0.65, 0.15, 0.2))
        spots = [(px, py + (0.1 if not gantry else 2.2) * s)]
        if gantry:
            reach = (-1 if x > 0 else 1) * self.uniform(2.2, 3.6) * s
            self.limb((px, py), (px + reach, py), s * 0.18, s * 0.15, color, POLE, z=z)
            spots.append((px + reach, py - 0.1 * s))
        for cx, top in spots:
            self.light_box(cx, top, s * self.uniform(1.1, 1.25), state, housing, z)
        if self.chance(0.35):
            self.sign_plate(px, py + (1.7 if not gantry else 1.2) * s, s * 0.85, z)

    def light_box(self, cx: float, top: float, s: float, state: int, housing: Color, z: float) -> None:
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
            self.ellipse(cx, cy - 0.03 * s, 0.2 * s, 0.19 * s, mix(housing, (0, 0, 0), 0.6), z=z)
            self.ellipse(cx, cy, 0.17 * s, 0.17 * s, bright if i == state else mix(bright, (24, 24, 24), 0.78), z=z)
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
        """A sign of half a meter around (cx, cy)."""
        kind = self.pick(("ban", "warning", "stop", "order", "direction", "parking", "yield"))
        red, white, blue, black = (204, 28, 36), (244, 244, 240), (28, 84, 176), (26, 26, 28)

        def shape(points, radius: float, color: Color, label: int | None = None) -> None:
            self.polygon([(cx + radius * s * c, cy + radius * s * d) for c, d in points], color, label, z=z)

        up = [(0, -1), (0.95, 0.68), (-0.95, 0.68)]
        down = [(0, 1), (0.95, -0.68), (-0.95, -0.68)]
        octagon = [(math.cos(math.pi * (i + 0.5) / 4), math.sin(math.pi * (i + 0.5) / 4)) for i in range(8)]
        square = [(-1, -1), (1, -1), (1, 1), (-1, 1)]

        def bar(x0, y0, x1, y1, color: Color) -> None:
            corners = [(cx + x0 * s, cy + y0 * s), (cx + x1 * s, cy + y0 * s), (cx + x1 * s, cy + y1 * s), (cx + x0 * s, cy + y1 * s)]
            self.polygon(corners, color, z=z)

        if kind == "ban":
            shape(CIRCLE, 0.5, red, TRAFFIC_SIGN)
            if self.chance(0.4):
                bar(-0.34, -0.09, 0.34, 0.09, white)
            else:
                shape(CIRCLE, 0.37, white)
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
            shape(CIRCLE, 0.5, white, TRAFFIC_SIGN)
            shape(CIRCLE, 0.46, blue)
            bar(-0.06, -0.1, 0.06, 0.3, white)
            self.polygon([(cx - 0.2 * s, cy - 0.08 * s), (cx + 0.2 * s, cy - 0.08 * s), (cx, cy - 0.34 * s)], white, z=z)
        elif kind == "parking":
            shape(square, 0.45, white, TRAFFIC_SIGN)
            shape(square, 0.41, blue)
            bar(-0.18, -0.28, -0.06, 0.3, white)
            self.ellipse(cx + 0.02 * s, cy - 0.1 * s, 0.2 * s, 0.18 * s, white, z=z)
            self.ellipse(cx + 0.02 * s, cy - 0.1 * s, 0.1 * s, 0.08 * s, blue, z=z)
        else:
            color = self.pick((blue, (30, 120, 74), (244, 200, 50), white))
            ink = white if color in (blue, (30, 120, 74)) else black
            points = [(-0.8, -0.3), (0.62, -0.3), (0.9, 0), (0.62, 0.3), (-0.8, 0.3)]
            mirror = self.pick((-1, 1))
            self.polygon([(cx + mirror * 1.08 * a * s, cy + 1.2 * b * s) for a, b in points], ink, TRAFFIC_SIGN, z=z)
            self.polygon([(cx + mirror * a * s, cy + b * s) for a, b in points], color, TRAFFIC_SIGN, z=z)
            at = -0.6
            while at < 0.35:
                wide = self.uniform(0.06, 0.2)
                bar(at, -0.12, at + wide, 0.1, ink)
                at += wide + 0.06
