"""The flags of `fact-jax serve`: each limit is one, and tokens are never shown."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fact_jax import UserError
from fact_jax.cli.serve import first_task, read_token
from fact_jax.serving.server.limits import Limits

SECRET = "not-to-be-shown-0123456789"


def options(**given: Any) -> Any:
    return SimpleNamespace(**{"token_env": "", "token_file": "", **given})


def test_a_token_comes_from_a_variable_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    (tmp_path / "token").write_text(f"{SECRET}\n")
    assert read_token(options()) is None
    assert read_token(options(token_env="TOKEN")) == SECRET.encode()
    assert read_token(options(token_file=str(tmp_path / "token"))) == SECRET.encode()


@pytest.mark.parametrize("token", ["", SECRET[:15], f"{SECRET}\n{SECRET}", 1001 * "x"])
def test_a_bad_token_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("TOKEN", token)
    with pytest.raises(UserError, match="expected a token of 16 to 1,000") as refused:
        read_token(options(token_env="TOKEN"))
    assert SECRET[:15] not in str(refused.value)


def test_two_tokens_or_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not both"):
        read_token(options(token_env="A", token_file="B"))
    with pytest.raises(UserError, match="No such file"):
        read_token(options(token_file=str(tmp_path / "none")))


def test_a_limit_out_of_its_range_is_named() -> None:
    with pytest.raises(UserError, match="max_queue is 0; expected a whole number from 1"):
        Limits(max_queue=0)


def test_a_folder_without_a_sound_file_has_no_first_task(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert first_task(tmp_path) is None
