"""LitServe around our bank and our decoding, until stdin ends: a batch closes by its window of 5 ms."""

import json
import sys
import threading
import time
from typing import Any

import httpx
import litserve
import torch
from fastapi import Request

from benchmarks.meter import end_with_stdin
from cflow_ray.data.images import PreparedImage, prepare
from cflow_ray.model.verdict import judge
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.stores import free_port

_WINDOW = 0.005
Work = tuple[str, PreparedImage]


class Detectors(litserve.LitAPI):
    """The same work as a replica of ours, image by image, around one bank."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(max_batch_size=settings["batch_size"], batch_timeout=_WINDOW)
        self._settings = settings

    def setup(self, device: str) -> None:
        """Load every category."""
        torch.set_num_threads(self._settings["cores"])
        registry = Registry(Storage(self._settings["registry"]))
        self._bank = registry.bank(runtime=self._settings["runtime"])
        self._keys = {name: (name, registry.best(name)) for name in registry.categories()}
        self._detectors = {name: self._bank.detector(key) for name, key in self._keys.items()}

    def decode_request(self, request: Request) -> Work:
        """Of a form: LitServe takes no bare body. The annotation, not as text, tells it to parse forms."""
        category = request["category"]
        return category, prepare(request["image"].file.read(), self._detectors[category].config.input)

    def batch(self, inputs: list[Work]) -> list[Work]:
        """As they are."""
        return inputs

    def predict(self, inputs: list[Work]) -> list[dict[str, Any]]:
        """Findings of the batch, judged."""
        findings = self._bank.score_batch([image.pixels_3HW for _, image in inputs], [self._keys[c] for c, _ in inputs])
        answers = []
        for (category, image), finding in zip(inputs, findings, strict=True):
            detector = self._detectors[category]
            rate = detector.config.target_fpr
            verdict = judge(finding.score, finding.map_HW, detector.calibration, rate, image.frame)
            answers.append({"score": verdict.score, "is_anomaly": verdict.is_anomaly})
        return answers

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As they are."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


def _announce(url: str) -> None:
    while True:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                print(url, flush=True)
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)


if __name__ == "__main__":
    port = free_port()
    server = litserve.LitServer(Detectors(json.loads(sys.argv[1])), accelerator="cpu", timeout=60)
    end_with_stdin()
    threading.Thread(target=_announce, args=(f"http://127.0.0.1:{port}",), daemon=True).start()
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
