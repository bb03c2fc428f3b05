"""Checkpoint files: read safely, their names translated, what model they hold."""

__all__: list[str] = []  # its modules are imported by their names
