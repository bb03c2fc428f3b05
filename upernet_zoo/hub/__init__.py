"""Models as folders and as repositories of the Hugging Face Hub."""

__all__: list[str] = []
