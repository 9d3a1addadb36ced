"""JSON that others may have touched: sound values, and one clear error for all else."""

import json
import os
import warnings
from typing import Annotated, Any, TypedDict

import pytest
from etils import epath

from fact_jax import UserError
from fact_jax.files.json_reader import read_json
from fact_jax.files.schema import Between


def test_sound_files_and_texts_are_read(tmp_path):
    value = {"a": [1, -2.5, True, None, "ä\U0001f600"], "n": 2**63, "deep": [[[[]]]]}
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())  # as Windows writes it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_json(path) == read_json(str(path)) == read_json(epath.Path(path)) == value
    assert read_json(json.dumps(value).encode(), name="x") == value
    assert read_json(b"[1]", name="x", schema=Any) == [1]
    assert read_json(b'{"a": NaN, "b": 1e999}', name="x", allow_nan=True)["b"] == float("inf")
    assert read_json(b'{"a": "\\udce9"}', name="x", allow_surrogates=True) == {"a": "\udce9"}


HOSTILE = {
    "deep": (b"[" * 100_000, "nested too deeply"),
    "rather deep": (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "deeper than 100 levels"),
    "latin": (b'{"a": "caf\xe9"}', "not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "surrogate": (b'{"a": ["\\ud800"]}', "lone surrogate"),
    "surrogate as key": (b'{"\\udfff": 1}', "lone surrogate"),
    "NUL": (b'{"a": "x\\u0000y"}', "NUL"),
    "raw NUL": (b'{"a": "x\0y"}', "Invalid control character"),
    "NaN": (b'{"a": NaN}', "it holds NaN"),
    "infinity": (b'{"a": -Infinity}', "it holds -Infinity"),
    "overflow": (b'{"a": 1e999}', "1e999 is too large"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "an integer has 5,000 digits"),
    "list": (b"[]", "holds a list, expected an object"),
    "null": (b"null", "holds null, expected an object"),
    "a key twice": (
        b'{"a": [{"k": 1, "x": 2, "k": 3}]}',
        "there 2 times in one object",
    ),
    "empty": (b"", "Expecting value"),
    "cut": (b'{"a": 1', "delimiter"),
    "two": (b"{} {}", "Extra data"),
    "large": (b'{"a": "' + b"x" * 2000 + b'"}', "more than 1,000 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_sound_json_is_refused_by_name(tmp_path, case):
    content, words = HOSTILE[case]
    path = tmp_path / "a.json"
    path.write_bytes(content)
    limit = 1000 if case == "large" else 200_000
    for source in (path, content):
        with pytest.raises(UserError, match=words) as caught:
            read_json(source, name=None if source is path else "a.json", max_bytes=limit)
        assert "a.json" in str(caught.value)
        assert len(str(caught.value)) < 300


def test_a_pipe_or_folder_in_its_place_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", epath.Path(tmp_path / "pipe.json"), tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


class Inner(TypedDict):
    n: int


class Outer(TypedDict, total=False):
    inner: Inner
    x: float
    s: Annotated[str, Between(1, 3)] | None
    many: list[Annotated[int, Between(0, 9)]]
    pair: tuple[str, int]


def test_values_have_their_type():
    for sound in ({}, {"inner": {"n": 3, "more": "x"}, "x": 2, "s": None, "pair": ["a", 1]}):
        assert read_json(json.dumps(sound).encode(), schema=Outer) == sound
    for value, words in (
        ({"inner": {"n": True}}, "inner.n is True, expected a whole number"),
        ({"inner": {}}, "inner.n is missing"),
        ({"inner": [1]}, "inner is a list, expected an object"),
        ({"x": None}, "x is null, expected a number"),
        ({"x": 1e31}, "x is 1e+31, expected a number, at most 1e+30"),
        ({"s": "abcd"}, "s has 4 characters, expected 1 to 3"),
        ({"many": [1, 10]}, "many[1] is 10, expected 0 to 9"),
        ({"pair": ["a"]}, "pair has 1 entries, expected 2"),
    ):
        with pytest.raises(UserError) as caught:
            read_json(json.dumps(value).encode(), name="f.json", schema=Outer)
        assert str(caught.value) == f"f.json: {words}."
