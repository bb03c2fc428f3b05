"""People and two-wheelers, drawn as flat figures that face the camera."""

from __future__ import annotations

from .canvas import BICYCLE, CIRCLE, FIGURES, MOTORCYCLE, PERSON, RIDER, SUPERSAMPLING, Color, hsv, mix
from .vehicles import Vehicles

__all__ = ["Figures"]


class Figures(Vehicles):
    """Draws people, bicycles and motorcycles."""

    def figure_frame(self, x: float, z: float, flip: int):
        """Meters of a figure (to its front, up) -> picture pixels, and pixels per meter."""
        scale = FIGURES * self.focal / z
        foot_x, foot_y = self.project((x, 0, z)).tolist()
        return (lambda dx, dy: (foot_x + flip * dx * scale, foot_y - dy * scale)), scale

    def skin(self) -> Color:
        return self.pick(((244, 208, 180), (224, 172, 136), (186, 128, 92), (128, 84, 58), (92, 60, 42)))

    def person(self, x: float, z: float) -> None:
        """Someone on foot, seen from the side while walking, or from the front or the back."""
        flip = self.pick((-1, 1))
        at, s = self.figure_frame(x, z, flip)
        tall = self.uniform(1.55, 1.92) if self.chance(0.88) else self.uniform(1.05, 1.4)
        k = tall / 1.75
        coat, legs, skin = self.paint_color(), mix(self.paint_color(), (40, 44, 60), 0.5), self.skin()
        hair = self.pick(((40, 30, 24), (96, 64, 38), (190, 150, 84), (150, 148, 146), (24, 22, 22)))
        side_view = self.chance(0.5)
        self.shadow(x, z, 0.4, 0.22)
        hip, shoulder = 0.86 * k, 1.44 * k
        stride = self.uniform(0.08, 0.32) * k if side_view else self.uniform(0.07, 0.13) * k
        dress = self.chance(0.2)
        shoe = self.pick(((30, 28, 28), (220, 220, 220), (110, 70, 44)))
        for foot, dark in ((-stride, 0.25), (stride, 0.0)):
            tone = mix(skin if dress else legs, (0, 0, 0), dark)
            knee = at(foot * 0.55 + 0.02 * side_view, 0.46 * k)
            self.limb(at(foot * 0.25, hip), knee, s * 0.17 * k, s * 0.14 * k, tone, PERSON, z=z)
            self.limb(knee, at(foot, 0.08), s * 0.14 * k, s * 0.1 * k, tone, PERSON, z=z)
            self.limb(at(foot - 0.03, 0.05), at(foot + 0.11 * side_view + 0.02, 0.05), s * 0.1, s * 0.09, shoe, PERSON, z=z)
        half = (0.15 if side_view else 0.21) * k
        swing = self.uniform(-0.25, 0.25) * k if side_view else 0.0
        if side_view:
            self.limb(at(0, shoulder - 0.06), at(-swing, 0.95 * k), s * 0.11 * k, s * 0.09 * k, mix(coat, (0, 0, 0), 0.35), PERSON, z=z)
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
            self.limb(at(-half * 0.8, 0.98 * k), at(half * 0.8, 0.98 * k), s * 0.05, s * 0.05, mix(coat, (20, 20, 20), 0.6), z=z)
        arms = ((swing, 0.92 * k),) if side_view else ((-half - 0.07 * k, 0.9 * k), (half + 0.07 * k, 0.9 * k))
        for i, (dx, dy) in enumerate(arms):
            start = at(0 if side_view else (-half if i == 0 else half) * 0.9, shoulder - 0.05 * k)
            self.limb(start, at(dx, dy), s * 0.12 * k, s * 0.09 * k, mix(coat, (0, 0, 0), 0.14), PERSON, z=z)
            self.ellipse(*at(dx, dy - 0.04), s * 0.05 * k, s * 0.05 * k, skin, PERSON, z=z)
        if self.chance(0.3):  # a bag
            bag = self.paint_color()
            dx = arms[-1][0]
            corners = [at(dx - 0.13, 0.9 * k), at(dx + 0.13, 0.9 * k), at(dx + 0.15, 0.58 * k), at(dx - 0.15, 0.58 * k)]
            self.polygon(corners, bag, PERSON, z=z)
        elif side_view and self.chance(0.35):  # a rucksack
            self.limb(at(-half - 0.07, shoulder - 0.08), at(-half - 0.07, 1.1 * k), s * 0.22, s * 0.24, self.paint_color(), PERSON, z=z)
        self.head(at, s, 0.03 * side_view, 1.62 * k, k, skin, hair, side_view, PERSON, z)
        if self.weather in ("rain", "snow") and self.chance(0.35):
            hue = self.paint_color()
            top = 2.12 * k
            dome = [at(0.62 * c, top + 0.32 * max(sn, -0.05)) for c, sn in CIRCLE]
            self.limb(at(0.1, 1.2 * k), at(0, top), s * 0.04, s * 0.04, (50, 50, 50), PERSON, z=z)
            self.polygon(dome, hue, PERSON, z=z)
            self.polygon([at(-0.2, top), at(0.2, top), at(0, top + 0.32)], mix(hue, (255, 255, 255), 0.2), z=z)

    def head(self, at, s, dx, dy, k, skin: Color, hair: Color, side_view: bool, label: int, z: float) -> None:
        radius = 0.12 * k
        self.limb(at(dx * 0.5, dy - 0.2 * k), at(dx, dy), s * 0.09 * k, s * 0.1 * k, skin, label, z=z)
        self.ellipse(*at(dx, dy), s * radius * 0.86, s * radius, skin, label, z=z)
        back = -0.03 * k if side_view else 0.0
        crown = [at(dx + back + radius * 1.0 * c, dy + 0.025 * k + radius * 1.02 * max(sn, -0.2)) for c, sn in CIRCLE]
        self.polygon(crown, hair, label, z=z)
        if self.chance(0.25):
            self.limb(
                at(dx + back * 2 - 0.04 * k, dy), at(dx + back * 2 - 0.05 * k, dy - 0.14 * k), s * 0.13 * k, s * 0.1 * k, hair, label, z=z
            )
        elif self.chance(0.3):
            hat = self.paint_color()
            self.polygon([at(dx + radius * c, dy + 0.07 * k + radius * 0.8 * max(sn, 0)) for c, sn in CIRCLE], hat, label, z=z)
            self.limb(at(dx - 0.1 * k, dy + 0.07 * k), at(dx + 0.17 * k, dy + 0.07 * k), s * 0.035, s * 0.035, hat, label, z=z)

    def bicycle(self, x: float, z: float, rider: bool, behind: bool) -> None:
        """A bicycle from the side or from behind, with or without its rider. Wheels are labeled as full discs."""
        flip = self.pick((-1, 1))
        at, s = self.figure_frame(x, z, flip)
        color, dark = self.paint_color(), (26, 26, 28)
        tube = max(s * 0.055, 1.1)
        if behind:
            self.shadow(x, z, 0.3, 0.5)
            self.ellipse(*at(0, 0.34), s * 0.07, s * 0.36, dark, BICYCLE, z=z)
            self.limb(at(0, 0.5), at(0, 0.92), s * 0.13, s * 0.1, color, BICYCLE, z=z)
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
                box = [v * SUPERSAMPLING for v in (px - r1, py - r1, px + r1, py + r1)]
                self.opaque.ellipse(box, outline=self.shade(c1, 1, z), width=max(int(wide * SUPERSAMPLING * (1 if r1 == r else 0.4)), 1))
            self.marker.ellipse([v * SUPERSAMPLING for v in (px - r, py - r, px + r, py + r)], fill=BICYCLE)
            for i in range(0, 9):
                c, sn = CIRCLE[i]
                ends = [
                    (px + r * c) * SUPERSAMPLING,
                    (py + r * sn) * SUPERSAMPLING,
                    (px - r * c) * SUPERSAMPLING,
                    (py - r * sn) * SUPERSAMPLING,
                ]
                self.opaque.line(ends, fill=self.shade((150, 150, 154), 1, z), width=1)
        crank, seat, head = (-0.08, 0.3), (-0.22, 0.86), (0.4, 0.86)
        frame = [at(*p) for p in (hub_a, crank, head, seat)]
        self.marker.polygon([v * SUPERSAMPLING for p in frame for v in p], fill=BICYCLE)
        for p, q in ((hub_a, crank), (hub_a, seat), (crank, seat), (crank, head), (seat, head), (hub_b, (0.36, 1.02))):
            self.limb(at(*p), at(*q), tube, tube, color, BICYCLE, z=z)
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
        color, dark = hsv(self.uniform(0.72, 0.98), self.uniform(0.7, 0.95), self.uniform(0.5, 0.85)), (26, 26, 28)
        steel = (150, 152, 158)
        if behind:
            self.shadow(x, z, 0.45, 0.6)
            self.ellipse(*at(0, 0.33), s * 0.12, s * 0.34, dark, MOTORCYCLE, z=z)
            body = [at(-0.2, 0.45), at(0.2, 0.45), at(0.26, 0.8), at(0.17, 1.0), at(-0.17, 1.0), at(-0.26, 0.8)]
            self.polygon(body, color, MOTORCYCLE, z=z)
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
        self.marker.polygon([v * SUPERSAMPLING for p in hull for v in p], fill=MOTORCYCLE)
        for cx in (-0.66, 0.66):
            for r, c in ((radius, dark), (radius * 0.62, (140, 142, 146)), (radius * 0.42, (60, 60, 64))):
                self.ellipse(*at(cx, radius), s * r, s * r, c, MOTORCYCLE, z=z)
        self.limb(at(0.66, radius), at(0.36, 1.0), s * 0.09, s * 0.09, steel, MOTORCYCLE, z=z)
        self.polygon([at(-0.5, 0.3), at(0.32, 0.3), at(0.42, 0.62), at(-0.45, 0.62)], (62, 62, 66), MOTORCYCLE, z=z)
        self.ellipse(*at(-0.02, 0.45), s * 0.17, s * 0.15, steel, MOTORCYCLE, z=z)
        self.polygon([at(-0.1, 0.6), at(0.48, 0.62), at(0.42, 0.92), at(0.1, 0.95), at(-0.14, 0.8)], color, MOTORCYCLE, z=z)
        self.polygon([at(-0.86, 0.72), at(-0.1, 0.66), at(-0.08, 0.82), at(-0.86, 0.88)], dark, MOTORCYCLE, z=z)
        self.polygon([at(-0.95, 0.62), at(-0.55, 0.55), at(-0.5, 0.72), at(-0.92, 0.8)], color, MOTORCYCLE, z=z)
        self.limb(at(-0.86, 0.3), at(-0.2, 0.28), s * 0.1, s * 0.08, steel, MOTORCYCLE, z=z)
        self.limb(at(0.34, 1.02), at(0.2, 1.1), s * 0.06, s * 0.06, dark, MOTORCYCLE, z=z)
        self.ellipse(*at(0.5, 0.9), s * 0.1, s * 0.1, (250, 246, 220), MOTORCYCLE, z=z)
        self.polygon([at(0.52, 0.62), at(0.78, 0.68), at(0.9, 0.6), at(0.86, 0.72), at(0.6, 0.78)], color, MOTORCYCLE, z=z)
        if rider:
            self.rider_side(at, s, (-0.34, 0.84), (0.24, 1.1), (0.0, 0.36), z, True)

    def vest(self) -> Color:
        """Most who ride wear something that is seen from far."""
        if self.chance(0.2):
            return self.paint_color()
        return hsv(self.pick((0.06, 0.16, 0.22)) + self.uniform(-0.02, 0.02), self.uniform(0.85, 1), self.uniform(0.85, 1))

    def rider_side(self, at, s, seat, grip, pedal, z: float, helmet: bool) -> None:
        """A rider from the side: from seat to grip and pedal, in meters of the figure."""
        coat, trousers, skin = self.vest(), mix(self.paint_color(), (40, 44, 60), 0.5), self.skin()
        shoulder = (seat[0] + 0.3, seat[1] + 0.52)
        knee = (seat[0] + 0.4, seat[1] - 0.16)
        self.limb(at(*seat), at(*knee), s * 0.19, s * 0.16, trousers, RIDER, z=z)
        self.limb(at(*knee), at(*pedal), s * 0.15, s * 0.11, trousers, RIDER, z=z)
        self.limb(at(pedal[0] - 0.02, pedal[1] - 0.04), at(pedal[0] + 0.12, pedal[1] - 0.04), s * 0.1, s * 0.08, (34, 32, 32), RIDER, z=z)
        self.limb(at(*seat), at(*shoulder), s * 0.27, s * 0.26, coat, RIDER, z=z)
        elbow = (shoulder[0] + 0.12, shoulder[1] - 0.26)
        self.limb(at(*shoulder), at(*elbow), s * 0.13, s * 0.12, mix(coat, (0, 0, 0), 0.16), RIDER, z=z)
        self.limb(at(*elbow), at(*grip), s * 0.12, s * 0.09, mix(coat, (0, 0, 0), 0.16), RIDER, z=z)
        dx, dy = shoulder[0] + 0.1, shoulder[1] + 0.24
        self.rider_head(at, s, dx, dy, skin, helmet, z)

    def rider_behind(self, at, s, z: float) -> None:
        """A rider seen from behind, or from ahead."""
        coat, trousers, skin = self.vest(), mix(self.paint_color(), (40, 44, 60), 0.5), self.skin()
        for side in (-1, 1):
            self.limb(at(side * 0.12, 0.92), at(side * 0.26, 0.62), s * 0.19, s * 0.15, trousers, RIDER, z=z)
            self.limb(at(side * 0.26, 0.62), at(side * 0.17, 0.26), s * 0.14, s * 0.11, trousers, RIDER, z=z)
            self.ellipse(*at(side * 0.18, 0.22), s * 0.07, s * 0.05, (34, 32, 32), RIDER, z=z)
            self.limb(at(side * 0.2, 1.42), at(side * 0.34, 1.14), s * 0.12, s * 0.1, mix(coat, (0, 0, 0), 0.16), RIDER, z=z)
        torso = [at(-0.17, 0.88), at(0.17, 0.88), at(0.23, 1.42), at(0.12, 1.5), at(-0.12, 1.5), at(-0.23, 1.42)]
        self.polygon(torso, coat, RIDER, z=z)
        self.polygon([at(0, 0.88), at(0.17, 0.88), at(0.23, 1.42), at(0, 1.5)], (0, 0, 0), z=z, alpha=0.15)
        self.rider_head(at, s, 0, 1.64, skin, self.chance(0.7), z)

    def rider_head(self, at, s, dx, dy, skin: Color, helmet: bool, z: float) -> None:
        self.limb(at(dx, dy - 0.16), at(dx, dy), s * 0.1, s * 0.1, skin, RIDER, z=z)
        self.ellipse(*at(dx, dy), s * 0.115, s * 0.125, skin, RIDER, z=z)
        color = self.paint_color() if helmet else self.pick(((40, 30, 24), (96, 64, 38), (190, 150, 84)))
        big = 1.3 if helmet else 1.08
        self.polygon([at(dx - 0.01 + 0.12 * big * c, dy + 0.03 + 0.12 * big * max(sn, -0.3)) for c, sn in CIRCLE], color, RIDER, z=z)
