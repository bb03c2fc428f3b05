"""The demo: a small packaged model and the drawn street scenes that it was trained on. It is not one of the zoo's models."""

__all__: list[str] = []
