"""A plain FastAPI app around anomalib's TorchInferencer, until stdin ends."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import threading
from typing import Annotated, Any

import torch
import uvicorn
from anomalib.deploy import TorchInferencer
from fastapi import Body, FastAPI
from PIL import Image

from benchmarks.meter import end_with_stdin
from benchmarks.peer.cflow import build, quiet


def app(encoder: dict[str, Any], cores: int) -> FastAPI:
    """`POST /score`, an image's bytes; images go through the model one by one."""
    quiet()
    torch.set_num_threads(cores)
    os.environ["TRUST_REMOTE_CODE"] = "1"  # the file is written here
    with tempfile.TemporaryDirectory() as folder:
        inferencer = TorchInferencer(build(encoder, visualizer=False).to_torch(folder), device="cpu")
    model = threading.Lock()
    api = FastAPI()

    @api.post("/score")
    def score(content: Annotated[bytes, Body(media_type="application/octet-stream")]) -> dict[str, Any]:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        with model, torch.no_grad():
            prediction = inferencer.predict(image)
        return {"score": float(prediction.pred_score), "is_anomaly": bool(prediction.pred_label)}

    return api


class _Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()
        print(f"http://{host}:{port}", flush=True)


if __name__ == "__main__":
    end_with_stdin()
    config = uvicorn.Config(app(**json.loads(sys.argv[1])), port=0, log_level="error")
    _Server(config).run()
