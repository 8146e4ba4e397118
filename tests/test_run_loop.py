"""The loop that fills a table: batches, device and host at the same time, progress."""

import json
import os
import signal
import time
from threading import Event

from python_device import counting, fill

from memattn_jax.runs.run import batch_size, batches
from memattn_jax.runs.stream import Overlap, asked_to_stop


def test_batches_depend_on_numbers_alone():
    rows = list(enumerate("abcdefghijk"))
    whole = list(batches(rows, 3, 5))
    assert ["".join(job for _, job in batch) for batch in whole] == ["abc", "de", "fgh", "ij", "k"]
    assert list(batches(rows[5:], 3, 5)) == whole[2:]
    kinds = list(batches(rows[:3], 3, 5, kind=lambda job: job < "b"))
    assert kinds == [[(0, "a")], [(1, "b"), (2, "c")]]


def test_batch_size_reads_ahead_and_loses_nothing():
    size, rest = batch_size(iter("abc"), 8)
    assert (size, "".join(rest)) == (3, "abc")
    size, rest = batch_size(iter("abcdefghij"), 8)
    assert (size, "".join(rest)) == (8, "abcdefghij")


def test_the_device_has_its_next_batch_before_the_last_is_written():
    """Host and device work at the same time: a batch ends here only when the next one has been started."""
    count = 20
    started = [Event() for _ in range(count)]

    def start(batch: int) -> int:
        started[batch].set()
        return batch

    def fetch(batch: int) -> bool:
        next_one = batch + 1 == count or started[batch + 1].wait(60)
        time.sleep(0.02)
        return next_one

    overlap, order = Overlap(), []
    for batch, next_one in overlap(range(count), start, fetch):
        assert next_one
        order.append(batch)
    assert order == list(range(count))
    assert overlap.device_share > 0.8


def test_a_device_that_waits_is_seen():
    overlap = Overlap()
    for _ in overlap(range(10), lambda batch: time.sleep(0.03), lambda started: time.sleep(0.01)):
        pass
    assert overlap.device_share < 0.6


def test_sigterm_outside_does_what_it_did():
    before = signal.getsignal(signal.SIGTERM)
    with asked_to_stop() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_is_logged(tmp_path, monkeypatch, capsys):
    """Off a terminal: lines of JSON, with the time that is left."""
    from memattn_jax.runs import progress as module

    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    fill(tmp_path, 100, start=lambda batch: time.sleep(0.002) or counting([])(batch))
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert [line["event"] for line in lines] == ["progress"] * 25 + ["done"]
    assert [line["row"] for line in lines[:-1]] == list(range(3, 100, 4))
    assert [line["rows"] for line in lines[:-1]] == list(range(4, 101, 4))
    assert lines[-2]["seconds_left"] == 0
    assert lines[-1]["rows_per_second"] > 0
    assert captured.out.splitlines() == [f"prompt {i}" for i in range(module.PRINTED)]
