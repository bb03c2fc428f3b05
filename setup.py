"""All that is declarative is in setup.cfg; this takes what is once at the top level into the wheel: the index, and times."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithIndex(build_py):
    """`build_py`, the index, and the times of benchmarks/inference.py that `upernet-zoo page` shows."""

    def _taken(self) -> dict[Path, Path]:
        """{where each file is: where it is taken}."""
        root, package = Path(__file__).parent, Path(self.build_lib) / "upernet_zoo"
        names = ["model_index.yml", *(f"results/{path.name}" for path in sorted((root / "results").glob("inference_*.json")))]
        return {root / name: package / name for name in names}

    def run(self) -> None:
        """Copy the package's files and those of the top level."""
        super().run()
        if not self.editable_mode:  # an editable install reads those at the top level
            for source, target in self._taken().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files that are made."""
        return [*super().get_outputs(include_bytecode), *map(str, self._taken().values())]


setup(cmdclass={"build_py": BuildWithIndex})
