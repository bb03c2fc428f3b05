"""What is looked at in a browser."""

__all__: list[str] = []
