"""Our server as `cflow-ray serve` runs it, behind Ray's proxy or HAProxy, until stdin ends."""

from __future__ import annotations

import json
import os
import sys

from cflow_ray.config import ServeConfig
from cflow_ray.serve.access import HAPROXY

if __name__ == "__main__":
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15; what it is compared with has 0
    settings = json.loads(sys.argv[1])
    if settings.pop("haproxy"):
        os.environ |= {HAPROXY: "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}

    from cflow_ray.serve import Server  # Ray reads its variables when it is imported

    with Server(ServeConfig.model_validate(settings)) as server:
        print(server.url, flush=True)
        sys.stdin.read()
