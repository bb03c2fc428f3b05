"""Where the bytes of a checkpoint come from: sources, transfer, cache. No torch here."""

__all__: list[str] = []
