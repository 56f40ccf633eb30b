"""Pickles of strangers: arrays and plain values come through, whatever wrote them, and nothing else runs."""

import os
import pickle
import subprocess

import numpy as np
import pytest

from drive_vlm.store.plain_pickle import read_plain_pickle

CONTENT = {
    "infos": [
        {"token": "a", "steps": np.arange(4, dtype=np.float32).reshape(2, 2), "names": np.array(["car", "bus"]), "flag": True},
        {"token": "b", "steps": np.zeros((0, 7)), "number": np.float64(2.5), "any": np.array([{"x": 1}], dtype=object)},
    ],
    "more": ({1, 2}, frozenset({3}), b"bytes", b"", None, 1.5, np.bool_(True), bytearray(b"x")),
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_content_of_every_protocol(protocol, tmp_path):
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    found = read_plain_pickle(path)
    assert found["infos"][0]["steps"].tolist() == [[0, 1], [2, 3]] and found["infos"][0]["names"].tolist() == [
        "car",
        "bus",
    ]
    assert found["infos"][1]["number"] == 2.5 and found["infos"][1]["any"][0] == {"x": 1}
    assert found["more"] == CONTENT["more"]


def test_the_names_of_numpy_1_are_read(tmp_path):
    """The published files were written long before numpy._core."""
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=3).replace(b"numpy._core", b"numpy.core"))
    assert read_plain_pickle(path)["infos"][0]["steps"].shape == (2, 2)


class Runs:
    """A pickle that would write a file."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (subprocess.run, "subprocess.run"),
        (getattr, "builtins.getattr"),
    ],
)
def test_what_would_run_is_refused_by_name(function, named, tmp_path):
    path, made = tmp_path / "infos.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"infos": [Runs(function, f"touch {made}")]}))
    with pytest.raises(ValueError, match=rf"infos\.pkl: not a pickle of .*it names {named}.*Nothing of it was run"):
        read_plain_pickle(path)
    assert not made.exists()


def test_codecs_that_unpack_are_refused(tmp_path):
    import _codecs

    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(Runs(_codecs.encode, "x", "rot13"), protocol=2))
    with pytest.raises(ValueError, match="codec 'rot13'"):
        read_plain_pickle(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x04K", pickle.dumps(CONTENT)[:-40], b"\x80\x05\x95" + b"\xff" * 20]
)
def test_files_of_another_kind_are_one_line(content, tmp_path):
    path = tmp_path / "infos.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"infos\.pkl: cannot be read as a pickle") as told:
        read_plain_pickle(path)
    assert "\n" not in str(told.value)
