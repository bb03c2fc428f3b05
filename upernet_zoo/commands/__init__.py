"""The commands of the command line, a module for each kind; `register(commands)` adds its own to the parser.

The modules are imported for every command, so they import torch and other slow things only where they run.
"""
