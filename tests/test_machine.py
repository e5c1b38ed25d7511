from __future__ import annotations

import os
import signal
import time

import pytest

from hssl.machine import Terminated, ends_as_interrupted


def test_a_polite_end_is_an_interruption_that_cleans_up() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ended = []

    def waits() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            ended.append("cancelled")

    try:
        with pytest.raises(Terminated, match="SIGTERM"), ends_as_interrupted() as come:
            waits()
        assert ended == ["cancelled"]
        assert come == [signal.SIGTERM]
    finally:
        assert signal.signal(signal.SIGTERM, before) is signal.SIG_DFL


def test_what_is_ignored_stays_ignored() -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with ends_as_interrupted():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hangup)
