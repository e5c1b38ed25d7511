"""A command that is ended from outside ends as with Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hssl.cli import main


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """A runner in the background, or under nohup, may ignore these signals, and so would this process."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_in_one_line_and_leaves_nothing(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = []

    def waits(output: Path, **_: object) -> None:
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)
        finally:
            ended.append(output)

    monkeypatch.setattr("hssl.phantoms.write_phantoms", waits)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert main(["phantoms", "-o", str(tmp_path / "raw")]) == code
    assert ended == [tmp_path / "raw"]
    assert capsys.readouterr().err == "hssl: interrupted; give the same command again\n"
    assert {each: signal.getsignal(each) for each in before} == before
