"""A hook of mkdocs (`hooks` in mkdocs.yml): the zoo's page is a part of the site, at zoo/."""

from pathlib import Path
from typing import Any

from upernet_zoo.cli.main import main


def on_post_build(config: Any) -> None:
    """Write the page into the site that was built, with what the weekly check found, where that was put beside it."""
    weights = Path(config.config_file_path).parent / "weights.json"
    seen = ["--weights", str(weights)] if weights.is_file() else []
    if main(["page", str(Path(config.site_dir) / "zoo"), *seen]):
        raise SystemExit(1)
