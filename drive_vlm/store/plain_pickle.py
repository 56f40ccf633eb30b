"""Pickles of strangers: NumPy arrays and plain Python values, and nothing that would run.

A pickle names the functions that its reader calls. pickle.Unpickler calls whatever is named; here only what builds arrays and
plain containers is, and a file that names anything else is refused before that is called
(docs.python.org/3/library/pickle.html, "Restricting Globals").
"""

import builtins
import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np

# What NumPy's own pickles name: as 1.x spells it, and as 2.x does.
_ARRAY_MODULES = ("numpy.core", "numpy._core")
_ARRAY_NAMES = {
    # The functions themselves have no public name; these are what an array and a number are pickled by.
    "multiarray._reconstruct": np.zeros(1).__reduce__()[0],
    "multiarray.scalar": np.float64(0).__reduce__()[0],
    "numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}
_PLAIN = {
    **{f"{module}.{name}": made for module in _ARRAY_MODULES for name, made in _ARRAY_NAMES.items()},
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "collections.OrderedDict": collections.OrderedDict,
    **{f"builtins.{name}": getattr(builtins, name) for name in ("set", "frozenset", "bytes", "bytearray", "complex")},
}


class _Refused(pickle.UnpicklingError):
    """The pickle names something beyond plain values."""


def _bytes_of(text: str, encoding: str) -> bytes:
    """What protocol 2 writes for bytes: a text in Latin-1. Other codecs are refused, since some of them unpack archives."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode with the codec {encoding!r}")
    return text.encode("latin-1")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full == "_codecs.encode":
            return _bytes_of
        if full not in _PLAIN:
            raise _Refused(f"it names {full}")
        return _PLAIN[full]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to objects outside of it")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle of dicts, lists, numbers, texts and NumPy arrays.

    Raises ValueError, naming the file, where it cannot be read, and where it names a class or function beyond those.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file).load()
    except _Refused as error:
        raise ValueError(
            f"{path}: not a pickle of NumPy arrays and plain values ({error}). Nothing of it was run. If you trust the file, "
            "load it yourself and write it again as JSON"
        ) from error
    # A file cut off or of another kind makes any of these, from whatever byte stands where an operation should.
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            ImportError, MemoryError, RecursionError, OverflowError, AssertionError) as error:  # fmt: skip
        raise ValueError(f"{path}: cannot be read as a pickle ({type(error).__name__}: {error})") from error
