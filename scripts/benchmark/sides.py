"""Starts the processes of a row's sides."""

from pathlib import Path

from benchmark.rows import Row, Side
from benchmark.worker import Worker


def start(side: Side, scratch: Path) -> Worker:
    """A side's process; the model that it reads is written to `scratch` if it is not there."""
    settings = dict(side.settings)
    if "folder" in settings:
        folder = scratch / settings["folder"]
        if not folder.exists():
            write = Worker("models:write", {"preset": folder.name, "folder": folder})
            write.ask("run", "write")
            write.stop()
        settings["folder"] = str(folder)
    return Worker(side.process, settings)


def start_both(row: Row, scratch: Path) -> tuple[Worker, Worker]:
    """Both sides' processes, the same one where both are calls of one."""
    ours = start(row.ours, scratch)
    together = (row.ours.process, row.ours.settings) == (row.other.process, row.other.settings)
    return ours, ours if together else start(row.other, scratch)
