from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hssl.benchmark.run.ledger import Ledger
from hssl.errors import RunError

MakeRecord = Callable[..., dict[str, Any]]


def test_what_a_crash_has_left_of_a_line_is_dropped(tmp_path: Path, make_row: MakeRecord) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.rows() == []
    ledger.append(make_row(seed=1))
    with ledger.path.open("a") as file:
        file.write('{"arm": "a", "ta')
    assert ledger.rows() == [make_row(seed=1)]
    ledger.append(make_row(seed=2))
    assert ledger.rows() == [make_row(seed=1), make_row(seed=2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dice": 1.5}, "dice: Input should be less than or equal to 1"),
        ({"hd95": float("nan")}, "hd95: "),
        ({"seed": "x"}, "seed: Input should be a valid integer"),
        ({"scores": [{}]}, "scores.0.case: Field required"),
        ({"part": "all"}, "part: Input should be 'val' or 'test'"),
        ({"arm": None}, "arm: Input should be a valid string"),
    ],
)
def test_a_damaged_line_is_named(change: dict[str, Any], message: str, tmp_path: Path, make_row: MakeRecord) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (make_row(), make_row(**change))))
    with pytest.raises(RunError, match=f"ledger.jsonl: line 2 is damaged: {message}"):
        Ledger(path).rows()


@pytest.mark.parametrize("line", [b"nonsense", b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"arm": "\\ud800"}'])
def test_a_line_that_is_no_object_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pretraining.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(RunError, match=r"pretraining.jsonl: line 1 is damaged: .*remove this line"):
        Ledger(path).rows()
