"""Anyone's CSV or parquet, described by a small ``schema.yaml``, into raw tables.

* ``reader``: the way from files to the raw folder: survey every file, agree on types over all files, write.
* ``files``: which files a path means, and how each is opened: separator, encoding, header, names.
* ``values``: ids, categories, lists, numbers and texts of one file, with what is wrong in them; types over all files.
* ``times``: the same for the time column; one unit for the data set.
* ``matching``: whether the ids of a table of users or items are those of the log.
"""

from .reader import read

__all__ = ["read"]
