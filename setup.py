"""Everything else is in setup.cfg; this puts configs and tools where mim looks."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "tools", "model-index.yml")


class BuildWithConfigs(build_py):
    """Adds ``ravlt/.mim`` to wheels. An editable install has the repository."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "ravlt", ".mim")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        target.mkdir(parents=True)
        for name in SHIPPED:
            if os.path.isdir(name):
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(name, target / name, ignore=ignore)
            else:
                shutil.copy(name, target / name)


setup(cmdclass={"build_py": BuildWithConfigs})
