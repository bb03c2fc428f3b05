"""The algebra of the fused model in ordinary operators, for other runtimes."""

__all__: list[str] = []
