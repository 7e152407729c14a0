"""Our server as `cflow-ray serve` runs it, until stdin ends."""

from __future__ import annotations

import json
import os
import sys

from cflow_ray.config import ServeConfig
from cflow_ray.serve import Server

if __name__ == "__main__":
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15; what it is compared with has 0
    with Server(ServeConfig.model_validate(json.loads(sys.argv[1]))) as server:
        print(server.url, flush=True)
        sys.stdin.read()
