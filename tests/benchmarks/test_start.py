"""What `realgen --help` takes is timed, in pairs."""

import json
import subprocess
import sys

import pytest

import start


def test_pairs_are_timed_and_their_ratio_said(monkeypatch, capsys):
    times = {tuple(start.HELP): iter([9.0, 0.2, 0.4, 0.3]), tuple(start.LEAST): iter([9.0, 0.1, 0.1, 0.1])}
    monkeypatch.setattr(start, "seconds", lambda command: next(times[tuple(command)]))
    monkeypatch.setattr("sys.argv", ["start.py", "--pairs", "3"])
    start.main()
    assert json.loads(capsys.readouterr().out) == {"seconds_help": 0.3, "seconds_least": 0.1, "ratio": 3.0}


def test_a_command_takes_time_and_one_that_fails_is_an_error():
    assert start.seconds(start.HELP) > 0
    with pytest.raises(subprocess.CalledProcessError):
        start.seconds([sys.executable, "-c", "raise SystemExit(1)"])
