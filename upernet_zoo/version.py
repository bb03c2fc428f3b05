"""The version, and where the package is installed from. On its own, so that setup.cfg reads it without importing the package."""

__all__ = ["SOURCE", "install_line", "runtime_lines"]

__version__ = "0.1.0"
SOURCE = "git+https://github.com/upernet-zoo/upernet_zoo"


def install_line(extra: str | None = None) -> str:
    """The shell command that installs the package, with an extra of setup.cfg: from its source, as its name on PyPI is nobody's."""
    return f"pip install {SOURCE}" if extra is None else f"pip install 'upernet-zoo[{extra}] @ {SOURCE}'"


def runtime_lines() -> tuple[str, str]:
    """The two shell commands that install the package without torch, which is enough for `upernet_zoo.runtime`."""
    return f"pip install --no-deps {SOURCE}", "pip install numpy pillow onnxruntime"
