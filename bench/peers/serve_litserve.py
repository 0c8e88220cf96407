"""LitServe: its uvicorn front, one worker process per core, ZeroMQ between them."""

from __future__ import annotations

from typing import Annotated

import litserve
from fastapi import Body
from work import CORES, PORT, Work


class Predict(litserve.LitAPI):
    """Takes the body as it is: LitServe's own reading of a Request knows forms and JSON only."""

    def setup(self, device: str) -> None:
        del device
        self._work = Work()

    def decode_request(self, request: Annotated[bytes, Body()]):  # noqa: ANN201 - uint8[h, w, 3]
        return self._work.decode(request)

    def batch(self, inputs):  # noqa: ANN001, ANN201 - as decoded; the model stacks them itself
        return inputs

    def predict(self, x) -> list[dict[str, object]]:  # noqa: ANN001 - as decoded
        return self._work.run(x)

    def unbatch(self, output: list[dict[str, object]]) -> list[dict[str, object]]:
        return output

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


# FastAPI reads the annotation, and `from __future__ import annotations` has made it text.
Predict.decode_request.__annotations__["request"] = Annotated[bytes, Body()]

if __name__ == "__main__":
    # `fast_queue` is for more than 100 requests/s; a batch takes what waits and waits for nothing.
    # Source: LitServe, LitServer's docstring (fast_queue, num_api_servers) and "Batching",
    # https://lightning.ai/docs/litserve/features/batching (batch_timeout)
    api = Predict(max_batch_size=8, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=CORES, fast_queue=True, timeout=60)
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=CORES,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
