"""Arms of a run compared, as numbers, tables and a verdict.

`metasae.compare` is this package and also the public function. Python sets a package as an attribute of its parent,
over any function of that name, so the package itself can be called.
"""

import sys
from types import ModuleType


class _Callable(ModuleType):
    def __call__(self, *arguments: object, **options: object) -> dict:
        from metasae.compare.compare import compare

        return compare(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
