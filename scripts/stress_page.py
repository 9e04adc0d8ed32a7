"""Many requests to the page of ``tessera serve``: what is answered, refused, or fails, and how the memory grows.

A page of a run is served in a process of its own. Requests are made from a seed: all ways of the API, with values that
make sense and values that do not, pictures that are whole, damaged, empty or large. A request may end in an answer or
in a refusal with words; anything else is a failure. Memory is the resident set of the server, after the first tenth of
the requests and at the end.

    python scripts/stress_page.py RUN [--requests 2000] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

_WARM_UP = 0.1
_INTERNAL = ("Traceback", "Internal Server", "NoneType", "object has no attribute", "upstream Gradio app has raised")
"""words of an error that was not meant for people"""


def serve(run: str, pipe: Connection) -> None:
    """The page, until the other end says so."""
    from pipeline.app.page import GeneratorPage
    from pipeline.app.studio import Studio
    from pipeline.runs.models import open_generator

    page = GeneratorPage(Studio(open_generator(run, "cpu"), run), "")
    with page.running() as address:
        pipe.send(address)
        pipe.recv()


class Requests:
    """Requests from a seed.

    Args:
        classes: of the generator.
        seed: of all of them.
        folder: for pictures.
    """

    def __init__(self, classes: list[str], seed: int, folder: Path) -> None:
        self._random, self._classes, self._folder = random.Random(seed), classes, folder

    def next(self) -> tuple[str, tuple[Any, ...]]:
        """A way of the API and its arguments."""
        from gradio_client import handle_file

        way = self._random.choice(["/draw", "/draw", "/inpaint", "/complete", "/look"])
        if way == "/draw":
            return way, self._fields()
        picture = handle_file(self._picture())
        if way == "/inpaint":
            return way, (picture, handle_file(self._picture()), *self._fields())
        if way == "/complete":
            return way, (picture, self._random.choice([0.5, 0.25, 0, 1, -3, None, "half"]), *self._fields())
        return way, (picture, self._class())

    def _fields(self) -> tuple[Any, ...]:
        choose = self._random.choice
        seed = choose(["", "0", "7", "-1", "x", "9" * 30, str(self._random.randrange(2**40))])
        images = choose([1, 1, 2, 3, 0, -4, 99, 1.5, None, "many"])
        return self._class(), seed, images, choose([1, 2.0, 7.5, -1, 1e9, None]), choose([1.0, 0.5, 0, -2, 1e9, None])

    def _class(self) -> Any:
        return self._random.choice([*self._classes, *self._classes, "walrus", "", None, 3])

    def _picture(self) -> str:
        path, kind = self._folder / f"{self._random.randrange(40)}.png", self._random.randrange(6)
        side, content = self._random.choice([1, 8, 20, 300]), io.BytesIO()
        pixels = np.random.default_rng(self._random.randrange(1000)).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).convert(self._random.choice(["RGB", "L", "RGBA", "P"])).save(content, "PNG")
        data = content.getvalue()
        path.write_bytes({0: b"", 1: b"\x89PNG nothing", 2: data[: len(data) // 2]}.get(kind, data))
        return str(path)


def outcome(client: Any, way: str, given: tuple[Any, ...]) -> str:
    """What became of a request: answered, refused, or the words of a failure."""
    try:
        client.predict(*given, api_name=way)
    except Exception as error:  # the client raises a class of its own for each kind
        said = str(error)
        failed = any(word in said for word in _INTERNAL) or not said.strip()
        return f"{way}: {type(error).__name__}: {said[:200]}" if failed else "refused"
    return "answered"


def resident_mib(process: int) -> float:
    """MiB of a process in memory."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def stress(run: str, n_requests: int, seed: int) -> dict[str, Any]:
    """Make the requests one after the other; returns counts, failures and the growth of memory."""
    from gradio_client import Client

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(run, there), daemon=True)
    server.start()
    client = Client(here.recv(), verbose=False)
    assert server.pid is not None
    found: Counter[str] = Counter()
    before = 0.0
    with tempfile.TemporaryDirectory() as folder:
        requests = Requests([str(i) for i in range(10)], seed, Path(folder))
        for i in range(n_requests):
            if i == int(_WARM_UP * n_requests):
                before = resident_mib(server.pid)
            found[outcome(client, *requests.next())] += 1
    alive, after = server.is_alive(), resident_mib(server.pid)
    here.send("stop")
    counts = {name: found.pop(name, 0) for name in ("answered", "refused")}
    return {**counts, "failures": dict(found), "alive": alive, "mib_before": before, "mib_after": after}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", help="a finished run")
    parser.add_argument("--requests", type=int, default=2000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    found = stress(options.run, options.requests, options.seed)
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(bool(found["failures"]) or not found["alive"])


if __name__ == "__main__":
    sys.exit(main())
