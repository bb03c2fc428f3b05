"""Cars, buses, trucks and trams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .buildings import Buildings
from .canvas import BUS, CAR, TRAIN, TRUCK, Place, hsv, mix

__all__ = ["Vehicles"]


class Vehicles(Buildings):
    """Draws vehicles."""

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
        for name, color in ((rear, (255, 60, 50) if lit else (168, 26, 30)), (front, (255, 252, 220) if lit else (214, 220, 226))):
            if name in faces:
                corners, light = faces[name]
                self.patch(corners, 0.02, 0.98, 0.0, 0.22, (44, 44, 48), light=light)
                for a in (0.05, 0.76):
                    self.patch(corners, a, a + 0.19, low, high, color, light=max(light, 1.0))
                self.patch(corners, 0.36, 0.64, 0.2 if name == rear else 0.06, 0.38 if name == rear else 0.2, (232, 232, 222), light=light)
                if name == front:
                    self.patch(corners, 0.28, 0.72, low - 0.06, high - 0.02, (34, 34, 38), light=light)

    def car(self, x: float, z: float, heading: str) -> None:
        """A hatchback, a saloon, an estate or a van."""
        kind = self.pick(("hatch", "saloon", "estate", "van"), (0.35, 0.3, 0.2, 0.15))
        length = {"hatch": 3.9, "saloon": 4.6, "estate": 4.5, "van": 4.8}[kind] * self.uniform(0.95, 1.06)
        half, waist = self.uniform(0.84, 0.94), self.uniform(0.86, 0.98)
        roof = {"hatch": 1.5, "saloon": 1.45, "estate": 1.6, "van": 1.95}[kind] * self.uniform(0.97, 1.06)
        color = self.paint_color()
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        for u in (0.4, length - 1.0):  # tyres under the ends
            for v in (-half + 0.05, half - 0.27):
                self.quad([place(u, v, 0), place(u, v + 0.22, 0), place(u, v + 0.22, 0.5), place(u, v, 0.5)], (22, 22, 25), CAR)
        low, high = (0, length, -half, half), (0.1, length - 0.14, -half * 0.97, half * 0.97)
        body = self.solid(place, low, 0.24, high, waist, color, CAR)
        self.lamps(body, "u0", "u1", 0.5, 0.78)
        for name in ("v0", "v1"):
            if name in body:
                corners, light = body[name]
                self.patch(corners, 0, 1, 0, 0.14, (40, 40, 44), light=light)
                self.patch(corners, 0.1, 0.9, 0.62, 0.68, mix(color, (255, 255, 255), 0.3), light=light)
                for a in (0.33, 0.56):
                    self.patch(corners, a, a + 0.008, 0.14, 1, mix(color, (0, 0, 0), 0.5), light=light)
                    self.patch(corners, a + 0.03, a + 0.065, 0.74, 0.8, mix(color, (20, 20, 20), 0.4), light=light)
        self.wheels(place, body, (length * 0.19, length * 0.8), half, 0.33, CAR)
        back, front, lean = {
            "hatch": (0.02, 0.7, 0.1),
            "saloon": (0.14, 0.72, 0.12),
            "estate": (0.01, 0.7, 0.05),
            "van": (0.01, 0.82, 0.03),
        }[kind]
        base = (length * back, length * front, -half * 0.93, half * 0.93)
        top = (length * (back + lean), length * (front - 0.15), -half * 0.78, half * 0.78)
        cabin = self.solid(place, base, waist, top, roof, color, CAR)
        glass = mix((36, 44, 54), self.sky_colors[1], self.uniform(0.05, 0.35))
        for name, (corners, light) in cabin.items():
            if name in ("u0", "u1"):
                self.patch(corners, 0.07, 0.93, 0.1, 0.86, glass, light=light)
                self.patch(corners, 0.12, 0.4, 0.45, 0.8, mix(glass, (255, 255, 255), 0.25), light=light, alpha=0.6)
            elif name != "top":
                for a0, a1 in ((0.08, 0.46), (0.51, 0.92)):
                    self.patch(corners, a0, a1, 0.12, 0.84, glass, light=light)
        if self.chance(0.06):  # a taxi's sign
            u = length * (back + front) / 2
            self.solid(place, (u, u + 0.25, -0.3, 0.3), roof, (u, u + 0.25, -0.28, 0.28), roof + 0.2, (250, 214, 60), CAR)

    def bus(self, x: float, z: float, heading: str) -> None:
        """A city bus: one long box with a band of windows and a lit destination."""
        length, half, roof = self.uniform(8.5, 11), 1.25, self.uniform(2.9, 3.3)
        color = hsv(self.pick((0.0, 0.09, 0.14)) + self.uniform(-0.02, 0.02), self.uniform(0.75, 0.95), self.uniform(0.7, 0.95))
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        rectangle = (0, length, -half, half)
        body = self.solid(place, rectangle, 0.3, (0.08, length - 0.1, -half * 0.96, half * 0.96), roof, color, BUS)
        glass = mix((34, 42, 52), self.sky_colors[1], self.uniform(0.05, 0.35))
        stripe = self.paint_color()
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
        """A lorry: a cargo box, a tarpaulin or a tipper, and a cab in another color."""
        length, half = self.uniform(6.8, 9.2), 1.22
        cab, cargo_top = self.uniform(1.9, 2.3), self.uniform(2.9, 3.5)
        kind = self.pick(("box", "tarpaulin", "tipper"), (0.45, 0.35, 0.2))
        color = hsv(self.uniform(0, 1), self.uniform(0, 0.1), self.uniform(0.75, 0.96))
        cab_color = hsv(self.uniform(0.55, 0.62), self.uniform(0.5, 0.9), self.uniform(0.5, 0.9))
        if kind == "tipper":
            cargo_top = self.uniform(2.1, 2.4)
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        chassis = (0.2, length - 0.4, -half * 0.8, half * 0.8)
        cargo = (0, length - cab - 0.35, -half, half)
        front = (length - cab, length, -half * 0.96, half * 0.96)
        front_top = (length - cab + 0.05, length - 0.3, -half * 0.9, half * 0.9)

        def draw_cab() -> None:
            body = self.solid(place, front, 0.4, front_top, 2.5, cab_color, TRUCK)
            glass = mix((34, 42, 52), self.sky_colors[1], 0.2)
            self.lamps({k: f for k, f in body.items() if k == "u1"}, "", "u1", 0.1, 0.24)
            for name, (corners, light) in body.items():
                if name == "u1":
                    self.patch(corners, 0.05, 0.95, 0.52, 0.9, glass, light=light)
                    self.patch(corners, 0.2, 0.8, 0.28, 0.42, (40, 40, 44), light=light)
                elif name in ("v0", "v1"):
                    self.patch(corners, 0.3, 0.82, 0.5, 0.86, glass, light=light)
                    self.patch(corners, 0.26, 0.28, 0.1, 0.95, mix(cab_color, (0, 0, 0), 0.5), light=light)
            self.wheels(place, body, (length - cab * 0.5,), half, 0.5, TRUCK)

        def draw_cargo() -> None:
            body = self.solid(place, chassis, 0.45, chassis, 1.0, (46, 46, 50), TRUCK)
            self.wheels(place, body, (1.0, 2.1), half, 0.5, TRUCK)
            for v in (-half + 0.1, half - 0.55):
                self.quad([place(0.6, v, 0), place(0.6, v + 0.45, 0), place(0.6, v + 0.45, 0.95), place(0.6, v, 0.95)], (24, 24, 27), TRUCK)
            top = cargo if kind != "tarpaulin" else (0.1, cargo[1] - 0.1, -half * 0.9, half * 0.9)
            box = self.solid(place, cargo, 0.95, top, cargo_top, color, TRUCK)
            for name, (corners, light) in box.items():
                dark = mix(color, (10, 10, 12), 0.4)
                if name in ("v0", "v1"):
                    if kind == "box":
                        self.patch(corners, 0.2, 0.8, 0.4, 0.68, self.paint_color(), light=light)
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
                        self.patch(corners, a, a + 0.04, 0.06, 0.94, mix(color, (200, 200, 200), 0.4), light=light)
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
        color = hsv(self.uniform(0.36, 0.48), self.uniform(0.6, 0.9), self.uniform(0.5, 0.85))
        lower = mix(color, (250, 246, 225), 0.8)
        place = self.vehicle_place(x, z, length, heading)
        self.ground_shadow(place, length, half)
        glass = mix((30, 36, 46), self.sky_colors[1], self.uniform(0.05, 0.3))
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
            body = self.solid(place, (u0, u1, -half, half), 0.2, (u0 + nose0, u1 - nose1, -half * 0.9, half * 0.9), roof, color, TRAIN)
            for name, (corners, light) in body.items():
                if name == "top":
                    continue
                self.patch(corners, 0, 1, 0, 0.07, (36, 36, 40), light=light)
                self.patch(corners, 0, 1, 0.07, 0.4, lower, light=light)
                if name in ("v0", "v1"):
                    a = np.linspace(0.06, 0.94, 5)
                    self.patches(corners, a[:-1] + 0.012, a[1:] - 0.012, np.full(4, 0.46), np.full(4, 0.8), [glass] * 4, light=light)
                    self.patch(corners, 0.4, 0.6, 0.07, 0.84, mix(lower, (20, 20, 20), 0.35), light=light)
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
