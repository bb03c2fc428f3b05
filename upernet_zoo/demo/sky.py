"""The sky, and what is far away."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .canvas import BUILDING, SUPERSAMPLING, VEGETATION, Canvas, Color, hsv, mix

__all__ = ["Sky"]


class Sky(Canvas):
    """Draws the sky, clouds and the skyline."""

    def sky(self) -> None:
        top, low = (np.array(c) for c in self.sky_colors)
        height, width = int(self.horizon / 2) + 2, (self.width + 1) // 2  # at half size, down to the horizon
        horizon = self.horizon / 2
        share = np.clip(np.arange(height) / horizon, 0, 1)[:, None, None] ** self.uniform(0.7, 1.4)
        sky = np.broadcast_to(top + (low - top) * share, (height, width, 3))
        amount = np.zeros((height, width)) if self.weather == "fog" else self.clouds(height, width)
        lit = mix((255, 250, 244), low, 0.25) if self.weather not in ("overcast", "rain", "snow") else mix(low, (255, 255, 255), 0.35)
        sky = sky + (np.array(lit) - sky) * amount[..., None]
        if self.weather in ("clear", "dusk") and self.chance(0.5):
            x, y = self.uniform(0.1, 0.9) * width, self.uniform(0.05, 0.6) * horizon
            distance = np.hypot(np.arange(width)[None] - x, np.arange(height)[:, None] - y) / (self.height / 2)
            glow = np.exp(-((distance / 0.045) ** 2)) + 0.35 * np.exp(-distance / 0.2)
            sky = sky + (np.array((255, 244, 214)) - sky) * np.clip(glow, 0, 1)[..., None]
        picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
        factor = 2 * SUPERSAMPLING
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
            color = hsv(self.uniform(0.2, 0.45), self.uniform(0.15, 0.5), self.uniform(0.3, 0.6))
            points = np.concatenate([np.stack([x, y], -1), [(self.width * 1.1, self.horizon + 2), (-9, self.horizon + 2)]])
            self.polygon(points, color, VEGETATION, z=0.75 * self.sight * self.uniform(0.4, 1))
        if self.chance(0.6):
            color = hsv(self.uniform(0, 1), self.uniform(0, 0.2), self.uniform(0.4, 0.7))
            left = -9.0
            while left < self.width:
                wide, high = self.uniform(0.02, 0.08) * self.width, self.uniform(0.03, 0.17) * self.height
                corners = [(left, self.horizon + 2), (left, self.horizon - high), (left + wide, self.horizon - high)]
                if self.chance(0.75):
                    tone = mix(color, (90, 90, 100), self.uniform(0, 0.4))
                    self.polygon([*corners, (left + wide, self.horizon + 2)], tone, BUILDING, z=self.sight * 0.5)
                    self.skyline_windows(left, wide, high, tone)
                left += wide

    def skyline_windows(self, left: float, wide: float, high: float, tone: Color) -> None:
        step = self.height / 42
        for y in np.arange(self.horizon - high + step / 2, self.horizon, step):
            for x in np.arange(left + step / 2, left + wide - step / 2, step):
                self.polygon(
                    [(x, y), (x + step * 0.5, y), (x + step * 0.5, y + step * 0.55), (x, y + step * 0.55)],
                    mix(tone, (40, 50, 70), 0.5),
                    z=self.sight * 0.5,
                )
