"""A font for every text: the first on this machine that has its letters."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

__all__ = ["drawable", "font_for"]

_NOBODYS = "\U0010ffff"  # a character that no font has: what is drawn for it is drawn for all that are missing

_ONE_FOR_ALL = ("LastResort", "AdobeBlank")  # fonts that have a letter for every character, the same for a whole script


def _folders() -> list[Path]:
    """Where this system keeps fonts; that of matplotlib, which knows Greek and Cyrillic, first."""
    found = []
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf")
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (which takes "~" as it is where there is no home)
    if sys.platform == "win32":
        found += [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"]
    elif sys.platform == "darwin":
        found += [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    else:
        found += [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts"]
    return found


@functools.cache
def _files() -> tuple[Path, ...]:
    files: list[Path] = []
    for folder in _folders():
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc"))
        files += [path for path in found if not path.name.startswith(_ONE_FOR_ALL)]
    return tuple(files)


@functools.lru_cache(64)
def _font(path: Path | None, size: int) -> Font | None:
    """A font, loaded once for each size: Pillow's own without a path; None where it cannot be read."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)
    except OSError:  # damaged, or of a kind that FreeType does not read
        return None


def _fonts(size: int) -> Iterator[Font]:
    """Pillow's own, then those on this machine."""
    for path in (None, *_files()):
        font = _font(path, size)
        if font is not None:
            yield font


def _has(font: Font, text: str) -> bool:
    """Whether a font has a letter for every character."""
    try:
        missing = bytes(font.getmask(_NOBODYS))
        return all(bytes(font.getmask(character)) != missing for character in set(text) if not character.isspace())
    except (OSError, ValueError):  # Pillow without FreeType has Latin letters alone, and says so
        return text.isascii()


def font_for(text: str, size: int) -> Font | None:
    """The first font that has all letters of a text, in `size` pixels; None where this machine has none."""
    return _font_for("".join(sorted(set(text))), size)


@functools.lru_cache(1024)
def _font_for(letters: str, size: int) -> Font | None:
    return next((font for font in _fonts(size) if _has(font, letters)), None)


def drawable(text: str, size: int, otherwise: str | None = None) -> tuple[str, Font]:
    r"""A text and a font that has its letters; where there is none, another text in Pillow's own.

    Args:
        otherwise: that text, of ASCII letters; None: the characters' numbers, such as \u9053.
    """
    font = font_for(text, size)
    if font is not None:
        return text, font
    text = text.encode("ascii", "backslashreplace").decode() if otherwise is None else otherwise
    plain = font_for("", size)
    assert plain is not None  # the first has all of no letters
    return text, plain
