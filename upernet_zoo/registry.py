"""Parts of a model that come in several kinds, by the name of their kind: backbones and necks.

A kind of the library's own is a file, which is found by its name and imported when the kind is first needed; so an index that names
the kind is read without torch. Somebody else's kind is registered by the module that defines it:

    @upernet_zoo.register_backbone
    class MyNet(upernet_zoo.Backbone): ...
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Generic, TypeVar

from .errors import ArgumentError, ConfigError, shown

__all__ = ["BACKBONES", "NECKS", "Registry", "register_backbone", "register_neck"]

_PACKAGE = Path(__file__).resolve().parent
_KIND = re.compile(r"[a-z][a-z0-9_]*")


# what is registered: a module class whose `config_class` is the dataclass of its options, which has the `kind`
_Class = TypeVar("_Class", bound=type)


class Registry(Generic[_Class]):
    """The classes of one part of a model, by kind.

    Args:
        what: the part, in words.
        modules: name of the library's own module of a kind, with `{kind}` in it; one without it has every kind.

    Examples:
        >>> from upernet_zoo.registry import BACKBONES
        >>> "swin" in BACKBONES.kinds(), BACKBONES.get("swin", "my model").__name__
        (True, 'Swin')
    """

    def __init__(self, what: str, modules: str) -> None:
        self.what = what
        self._modules = modules
        self._classes: dict[str, _Class] = {}

    def register(self, cls: _Class) -> _Class:
        """Take a class in, under the kind of its `config_class`; for use as a decorator.

        Raises:
            ArgumentError: no kind, or one that another class has.

        Examples:
            >>> from dataclasses import dataclass
            >>> import upernet_zoo as uz
            >>> from upernet_zoo.models.backbones.resnet import ResNet
            >>> @dataclass(frozen=True)
            ... class MyConfig(uz.ResNetConfig):
            ...     kind = "mine"
            >>> @uz.register_backbone
            ... class MyNet(ResNet):
            ...     config_class = MyConfig
            >>> uz.UPerNet(uz.UPerNetConfig(backbone=MyConfig(depth=18), num_classes=7)).backbone.config.title
            'ResNet-V1c-18'
        """
        kind = getattr(getattr(cls, "config_class", None), "kind", None)
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise ArgumentError(
                f"{cls.__name__}: a {self.what} needs a config_class whose 'kind' is a name such as 'my_net', found {shown(kind)}."
            )
        other = self._classes.get(kind)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ArgumentError(f"{cls.__name__}: {other.__module__}.{other.__name__} is the {self.what} of kind {kind!r}; choose another.")
        self._classes[kind] = cls
        return cls

    def may_have(self, kind: object) -> bool:
        """Whether there is such a kind, as far as can be told without importing its module."""
        return isinstance(kind, str) and (kind in self._classes or self._own_file(kind) is not None)

    def get(self, kind: object, owner: str) -> _Class:
        """The class of a kind; `owner` names the file or model in errors.

        Raises:
            ConfigError: there is none.
        """
        if isinstance(kind, str) and kind not in self._classes and self._own_file(kind) is not None:
            importlib.import_module(self._modules.format(kind=kind))
        if not isinstance(kind, str) or kind not in self._classes:
            raise ConfigError(
                f"{owner}: no {self.what} of kind {shown(kind)}; there are {', '.join(self.kinds()) or 'none'}. Another library's is there "
                "once its module has been imported."
            )
        return self._classes[kind]

    def kinds(self) -> list[str]:
        """Names of the kinds: the library's own, then those registered by others."""
        folder, pattern = self._own_files()
        own = [path.stem for path in sorted(folder.glob(pattern)) if _KIND.fullmatch(path.stem)] if "*" in pattern else []
        return list(dict.fromkeys([*own, *self._classes]))

    def classes(self) -> list[_Class]:
        """The class of every kind; imports the library's own modules."""
        if "{kind}" not in self._modules:
            importlib.import_module(self._modules)
        return [self.get(kind, self.what) for kind in self.kinds()]

    def _own_files(self) -> tuple[Path, str]:
        """Folder, and pattern of the names in it, of the library's own modules."""
        *folders, name = self._modules.format(kind="*").split(".")[1:]
        return _PACKAGE.joinpath(*folders), f"{name}.py"

    def _own_file(self, kind: str) -> Path | None:
        folder, pattern = self._own_files()
        path = folder / pattern.replace("*", kind)
        return path if _KIND.fullmatch(kind) and path.is_file() else None


BACKBONES: Registry = Registry("backbone", "upernet_zoo.models.backbones.{kind}")
NECKS: Registry = Registry("neck", "upernet_zoo.models.necks")
register_backbone, register_neck = BACKBONES.register, NECKS.register
