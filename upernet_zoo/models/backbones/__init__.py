"""Backbones: a picture in, four features out. One file for each kind, and `_base`, the contract that all others ask."""

__all__: list[str] = []  # its modules are imported by their names
