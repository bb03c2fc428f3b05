"""All that is declarative is in setup.cfg; this takes `model_index.yml`, which stands once at the top level, into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithIndex(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # an editable install reads the one at the top level
            shutil.copy2(Path(__file__).parent / "model_index.yml", Path(self.build_lib) / "upernet_zoo" / "model_index.yml")

    def get_outputs(self, *args, **kwargs):
        return [*super().get_outputs(*args, **kwargs), str(Path(self.build_lib) / "upernet_zoo" / "model_index.yml")]


setup(cmdclass={"build_py": BuildWithIndex})
