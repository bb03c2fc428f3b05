"""The command line: `main`, and a module for each kind of command; `register(commands)` adds its own to the parser.

The modules are imported for every command, so they import torch and other slow things only where they run.
"""

__all__: list[str] = []
