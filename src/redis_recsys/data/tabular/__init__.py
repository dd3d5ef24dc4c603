"""Reader of anyone's CSV or parquet, described by a small ``schema.yaml``, into raw tables.

- ``reader``: the entry point, from files to raw tables
- ``parts``: the files below a path, and how each is opened
- ``values``: values of one column, and one type over all files
- ``times``: times, and one unit for the whole data set
- ``matching``: ids of users and items compared with those of the log
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
