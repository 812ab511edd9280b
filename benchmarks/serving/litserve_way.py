"""LitServe: one worker process for the model, batches, its fast queue, one process for HTTP.

Without postponed annotations, because the library looks at those of `decode_request`: told `Request`, it
hands over the JSON in the request's body.
"""

from typing import Any

import fastapi
import litserve

from benchmarks import worker
from benchmarks.serving import client, predictor


class Api(litserve.LitAPI):  # type: ignore[misc]  # which has no types where it is not installed
    """The library calls `setup` in the worker process, and the others there for each request or batch."""

    def __init__(self, graph: predictor.Graph) -> None:
        super().__init__(max_batch_size=predictor.MAX_BATCH, batch_timeout=predictor.WAIT_S)
        self._graph = graph

    def setup(self, device: str) -> None:
        self._predictor = predictor.Predictor(self._graph)

    def decode_request(self, request: fastapi.Request) -> predictor.Array:
        given: Any = request
        return self._predictor.decode(given)

    def batch(self, inputs: list[predictor.Array]) -> list[predictor.Array]:
        return inputs

    def predict(self, x: list[predictor.Array]) -> predictor.Array:
        return self._predictor.run(x)

    def unbatch(self, output: predictor.Array) -> list[predictor.Array]:
        return list(output)

    def encode_response(self, output: predictor.Array) -> dict[str, Any]:
        return self._predictor.encode(output)


def main() -> None:
    given = worker.arguments()
    server = litserve.LitServer(
        Api(predictor.Graph(**given["graph"])), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(
        host=client.HOST,
        port=given["port"],
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
