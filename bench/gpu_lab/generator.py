"""`python -m bench.gpu_lab.generator JSON`: one client process. Writes what it saw as JSON, for `clients` to add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from bench import load


def main(told: dict[str, Any]) -> None:
    common = (told["url"], Path(told["body"]).read_bytes(), told["content_type"])
    if told["rate"]:
        run = load.poisson(*common, told["rate"], told["warmup_s"], told["seconds"], told["seed"])
    else:
        run = load.closed(*common, told["connections"], told["warmup_s"], told["seconds"])
    result = uvloop.run(run)
    document = {
        "latencies_ms": result.latencies_ms.tolist(),
        "statuses": {str(status): count for status, count in result.statuses.items()},
        "answered": result.answered,
    }
    Path(told["result"]).write_text(json.dumps(document))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
