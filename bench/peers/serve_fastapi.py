"""FastAPI with everything inline: one uvicorn process per core, decoding and the model in the event loop."""

from __future__ import annotations

import functools

import uvicorn
from fastapi import FastAPI, Request, Response
from work import CORES, PORT, Work

app = FastAPI()
work = functools.cache(Work)  # one per process: uvicorn's children import this file again


@app.post("/predict")
async def predict(request: Request) -> Response:
    # A ready Response and an async function: a thread's hop and Pydantic's walk over the answer are spared.
    # Source: FastAPI, "Return a Response Directly" and "Concurrency and async / await".
    return Response(work().reply(await request.body()), media_type="application/json")


if __name__ == "__main__":
    # One process per core, uvloop and httptools, no line per request. Source: uvicorn, https://www.uvicorn.org/settings
    uvicorn.run(
        "serve_fastapi:app",
        host="127.0.0.1",
        port=PORT,
        workers=CORES,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
