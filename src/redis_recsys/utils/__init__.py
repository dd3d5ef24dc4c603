"""Tools that know nothing about recommendations.

- ``files``: outputs that appear whole or not at all
- ``output_kinds``: kinds of folders that may be replaced
- ``interrupts``: Ctrl-C and SIGTERM
- ``progress``: progress bars
- ``machine``: cores and memory of this process
- ``ports``: free ports
- ``environments``: other Python environments
- ``redis_errors``: one-line explanations of Redis errors
"""
