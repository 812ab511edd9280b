"""mosec: HTTP and batches in Rust, one worker process for the model."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final

import mosec

from benchmarks import worker
from benchmarks.serving import client, predictor

GRAPH: Final = "BENCHMARK_GRAPH"
"""The environment is how the library gives something to its workers."""


class Inference(mosec.Worker):  # type: ignore[misc]  # which has no types where it is not installed
    """Requests and answers are JSON, as the library reads and writes it."""

    def __init__(self) -> None:
        super().__init__()
        self._predictor = predictor.Predictor(predictor.Graph(**json.loads(os.environ[GRAPH])))

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = self._predictor.run([self._predictor.decode(one) for one in data])
        return [self._predictor.encode(row) for row in rows]


def main() -> None:
    given = worker.arguments()
    # The library has a command line of its own.
    sys.argv[1:] = ["--address", client.HOST, "--port", str(given["port"]), "--log-level", "warning"]
    server = mosec.Server()
    server.append_worker(
        Inference,
        num=1,
        max_batch_size=predictor.MAX_BATCH,
        max_wait_time=round(1000 * predictor.WAIT_S),
        env=[{GRAPH: json.dumps(given["graph"])}],
    )
    server.run()


if __name__ == "__main__":
    main()
