"""Errors say what to do, and come out of another process as they are."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hssl.errors import ConfigError, HsslError, LeakError, RunError, SourceError, StoreError, TrainingError

KINDS = [HsslError, ConfigError, LeakError, RunError, SourceError, StoreError, TrainingError]


@pytest.mark.parametrize("kind", KINDS)
def test_no_refusal_is_without_a_hint(kind: type[HsslError]) -> None:
    with pytest.raises(TypeError, match="hint"):  # and mypy holds every caller to text
        kind("is wrong", path="file")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_from_another_process_is_whole(kind: type[HsslError]) -> None:
    error = pickle.loads(pickle.dumps(kind("is wrong", path="file", hint="put it right")))  # noqa: S301
    assert type(error) is kind
    assert (error.what, error.path, error.hint) == ("is wrong", Path("file"), "put it right")
    assert str(error) == "file: is wrong (put it right)"
