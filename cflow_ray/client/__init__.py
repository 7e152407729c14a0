"""The typed client of the HTTP API, for line computers: it imports neither torch nor Ray."""

from cflow_ray.client.calls import Upload
from cflow_ray.client.clients import AsyncClient, Client
from cflow_ray.client.failures import ProblemError, UnreachableError

__all__ = ["AsyncClient", "Client", "ProblemError", "UnreachableError", "Upload"]
