"""Trees and bushes."""

from __future__ import annotations

import math

import numpy as np

from .canvas import VEGETATION, Color, hsv, mix
from .ground import Ground

__all__ = ["Plants"]


class Plants(Ground):
    """Draws trees and bushes."""

    def leaf_color(self) -> Color:
        if self.weather == "snow":
            return hsv(self.uniform(0.28, 0.42), self.uniform(0.15, 0.4), self.uniform(0.25, 0.5))
        kind = self.pick(("green", "autumn", "blossom"), (0.72, 0.22, 0.06))
        if kind == "autumn":
            return hsv(self.uniform(0.01, 0.15), self.uniform(0.55, 0.85), self.uniform(0.45, 0.8))
        if kind == "blossom":
            return hsv(self.uniform(0.88, 0.97), self.uniform(0.15, 0.4), self.uniform(0.75, 0.92))
        return hsv(self.uniform(0.2, 0.42), self.uniform(0.35, 0.75), self.uniform(0.25, 0.55))

    def tree(self, x: float, z: float, height: float) -> None:
        """A broad-leaved tree, a poplar or a conifer; its foot at (x, 0, z)."""
        scale = self.focal / max(z, 3)
        foot_x, foot_y = self.project((x, 0, max(z, 3))).tolist()
        leaf, bark = self.leaf_color(), hsv(self.uniform(0.04, 0.1), self.uniform(0.2, 0.5), self.uniform(0.2, 0.42))
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
                self.polygon(points, mix(leaf, (12, 30, 26), 0.42 - 0.05 * i), VEGETATION, z=z)
                lit = [(foot_x + half * 0.8 * np.sign(light), low), (foot_x, low), (foot_x, high)]
                self.polygon(lit, mix(leaf, (255, 250, 190), 0.1), z=z, alpha=0.35)
            return
        crown_y = foot_y - scale * (height + stem) / 2
        half_x = scale * height * (self.uniform(0.26, 0.36) if kind == "round" else 0.12)
        self.foliage(foot_x, crown_y, half_x, scale * (height - stem) / 2, leaf, z)

    def foliage(self, x: float, y: float, half_x: float, half_y: float, leaf: Color, z: float) -> None:
        """Clumps of leaves that fill an ellipse: dark below, lit from above and from the sun's side."""
        size = math.sqrt(half_x * half_y) / self.height * 256
        count = int(min(max(size * 1.1, 10), 46))
        self.ellipse(x, y, half_x * 0.82, half_y * 0.82, mix(leaf, (14, 24, 16), 0.5), VEGETATION, z=z)
        angle, far = self.rng.uniform(0, 2 * math.pi, count), np.sqrt(self.rng.random(count))
        px, py = x + half_x * far * np.cos(angle) * 0.86, y + half_y * far * np.sin(angle) * 0.86
        radius = (0.2 + 0.14 * self.rng.random(count)) * min(half_x, half_y)
        height = np.sin(angle) * far  # -1 at the top
        side = np.cos(angle) * far * self.sun
        for i in np.argsort(-height):
            lit = 0.5 - 0.42 * height[i] + 0.3 * side[i] * self.sun_share * 2
            base = mix(mix(leaf, (12, 20, 20), 0.5), mix(leaf, (255, 250, 200), 0.14), min(max(lit, 0), 1))
            self.ellipse(px[i], py[i], radius[i], radius[i] * 0.85, base, VEGETATION, z=z)
        dots = int(min(count * 3, 110))
        angle, far = self.rng.uniform(0, 2 * math.pi, dots), np.sqrt(self.rng.random(dots)) * 0.92
        grain = max(min(half_x, half_y) * 0.065, 0.4)
        for c, s, tone in zip(np.cos(angle) * far, np.sin(angle) * far, self.rng.uniform(-0.4, 0.3, dots)):
            shade = mix(leaf, (10, 16, 12), -tone) if tone < 0 else mix(leaf, (255, 252, 190), tone)
            self.ellipse(x + half_x * c, y + half_y * s, grain * 1.3, grain, shade, VEGETATION, z=z)

    def bush(self, x: float, z: float, height: float) -> None:
        scale = self.focal / max(z, 3)
        foot_x, foot_y = self.project((x, 0, max(z, 3))).tolist()
        half = scale * height * self.uniform(0.5, 0.9)
        self.foliage(foot_x, foot_y - scale * height * 0.45, half, scale * height * 0.52, self.leaf_color(), z)
