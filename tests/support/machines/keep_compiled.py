"""Cache of the hosts' Python: modules imported from a zip archive are compiled once, not whenever a process starts.

Ansible sends its library as such an archive with every task. Compiling it was half of a task's cost. Users who may not
write into the folder, because they are not root, compile as before.
"""

import _imp
import marshal
import os
import zipimport

FOLDER = "/var/cache/keep_compiled"

_compile = zipimport._compile_source


def _kept(path, source):
    place = f"{FOLDER}/{_imp.source_hash(0, source).hex()}"
    try:
        with open(place, "rb") as file:
            return marshal.loads(file.read())
    except FileNotFoundError:
        code = _compile(path, source)
    if os.access(FOLDER, os.W_OK):
        aside = f"{place}.{os.getpid()}"
        with open(aside, "wb") as file:
            marshal.dump(code, file)
        os.replace(aside, place)
    return code


zipimport._compile_source = _kept
