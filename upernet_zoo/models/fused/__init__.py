"""Fused models: the same answer with fewer multiplications, for inference."""

__all__: list[str] = []  # its modules are imported by their names
