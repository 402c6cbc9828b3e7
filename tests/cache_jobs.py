"""Jobs that share a cache, each in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import json, logging, os, sys, time
from pathlib import Path
from psvit.cache.store import StageCache

root, name, stage, key, signals = json.loads(sys.argv[1])
signals = Path(signals)
logging.basicConfig(filename=signals / f"{name}.log", level=logging.INFO)
logging.getLogger("filelock").setLevel(logging.WARNING)

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)

def make(folder):
    found = sorted(path.name for path in folder.iterdir() if path.name.startswith("by-"))
    (signals / f"{name}.making").write_text(json.dumps(found))
    (folder / f"by-{name}").touch()
    wait_for(signals / f"{name}.go")
    (folder / "result.txt").write_text(name)

folder = StageCache(root).get(stage, key, make)
(signals / f"{name}.got").write_text(json.dumps([str(folder), (folder / "result.txt").read_text()]))
"""
PATIENCE = 60


class Jobs:
    """Starts jobs; what they tell and are told are files in one folder.

    A job makes its entry as ``<name>.go`` appears; it writes ``<name>.making`` as it begins to,
    with what it found unfinished, and ``<name>.got`` with the folder and result that it got.
    """

    def __init__(self, folder: Path):
        self.root, self.signals = folder / "cache", folder / "signals"
        self.signals.mkdir()
        self.processes = []

    def start(self, name, key, stage="base"):
        about = json.dumps([str(self.root), name, stage, key, str(self.signals)])
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, about], cwd=Path(__file__).parents[1]
        )
        self.processes.append(process)
        return process

    def let(self, name):
        (self.signals / f"{name}.go").touch()

    def read(self, file):
        path = self.signals / file
        return path.read_text() if path.exists() else ""

    def until(self, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, sorted(path.name for path in self.signals.iterdir())
            time.sleep(0.01)

    def until_making(self, name):
        self.until(lambda: self.read(f"{name}.making"))

    def until_waiting(self, name):
        self.until(lambda: "waiting for another job" in self.read(f"{name}.log"))

    def finish(self):
        for process in self.processes:
            process.wait(PATIENCE)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()
