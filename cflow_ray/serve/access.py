"""Who may ask: named bearer tokens, kept as hashes in a file or the environment, each with a role and a rate."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from cflow_ray.config import ClientName, Model, Rate, Role, ServeConfig
from cflow_ray.errors import CflowRayError, ConfigError
from cflow_ray.serve.problems import ProblemError
from cflow_ray.store.patience import Patience
from cflow_ray.store.storage import read_file

log = logging.getLogger(__name__)

VARIABLE = "CFLOW_RAY_TOKENS"
"""Environment variable that may hold what a file of tokens holds."""
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
"""Ray's environment variable that puts HAProxy in front of the replicas instead of Ray's own proxy."""


class Token(Model):
    """One token that is let in; the token itself is kept nowhere."""

    name: ClientName
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: Role = "score"
    rate: Rate = None


_PATIENCE = Patience(seconds=5)  # the registry's pointers are followed after the tokens
_TOKENS = TypeAdapter(tuple[Token, ...])


def make_token(name: str, role: Role, rate: float | None) -> tuple[str, Token]:
    """A new secret and its entry; ConfigError where the name or rate is none."""
    secret = secrets.token_urlsafe(32)
    try:
        return secret, Token(name=name, sha256=_hash(secret), role=role, rate=rate)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def read_tokens(text: str, where: str) -> tuple[Token, ...]:
    """The tokens of a YAML list; ConfigError where it is none, or a name or hash is there twice."""
    try:
        tokens = _TOKENS.validate_python(yaml.safe_load(text) or ())
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}. Run: cflow-ray token NAME") from error
    for what in ("name", "sha256"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ConfigError(f"{where}: the same {what} stands in two entries")
    return tokens


def asks_for_tokens(config: ServeConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a server with these settings lets in nobody without a token."""
    return config.tokens is not None or VARIABLE in environment


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the name of the token, `-` where none is asked for."""

    name: str
    role: Role


NOBODY = Caller("-", "score")
"""Who sent a request that names no token, or none that is let in."""


class Access:
    """The tokens that are let in now. `refresh` reads the file again; a damaged one changes nothing and is told.

    Where neither a file nor the environment names tokens, clients on this machine may score and nobody else anything.
    """

    def __init__(
        self,
        config: ServeConfig,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError or StorageError where the tokens cannot be read, ConfigError where they are needed."""
        if environment.get(HAPROXY) == "1" and not asks_for_tokens(config, environment):
            raise ConfigError(
                f"HAProxy (${HAPROXY}) hides who a client is and listens on every network, so the server needs tokens. "
                "Make one with: cflow-ray token NAME >> tokens.yaml, and give --tokens tokens.yaml."
            )
        self._config = config
        self._clock = clock
        self._of_environment = read_tokens(environment.get(VARIABLE, ""), f"${VARIABLE}")
        self._asked_for = asks_for_tokens(config, environment)
        self._buckets: dict[str, _Bucket] = {}
        self.problem: str | None = None
        """Why the file could not be read at the last refresh; None if it could."""
        self._by_hash = self._read()

    def refresh(self) -> None:
        """Read the file again: what stands no longer in it is no longer let in."""
        try:
            self._by_hash = self._read()
            self.problem = None
        except CflowRayError as error:
            self.problem = f"the tokens stay as they were: {error}"
            log.warning("%s", self.problem)

    def caller(self, secret: str | None, client: str | None) -> Caller:
        """Who sends this bearer token from this address; a Problem where that is nobody, or somebody too often."""
        if not self._asked_for:
            if is_loopback(client):
                return NOBODY
            raise ProblemError(
                "unauthorized", "no tokens are set up here, so only this machine's own clients are answered"
            )
        token = None if secret is None else self._by_hash.get(_hash(secret))
        if token is None:
            raise ProblemError("unauthorized", "this server wants a token that it knows: Authorization: Bearer TOKEN")
        self._take_turn(token)
        return Caller(token.name, token.role)

    def _take_turn(self, token: Token) -> None:
        if token.rate is None:
            return
        bucket = self._buckets.get(token.name)
        if bucket is None or bucket.rate != token.rate:
            bucket = self._buckets[token.name] = _Bucket(token.rate, self._clock)
        wait = bucket.take()
        if wait > 0:
            detail = f"{token.name} may send {token.rate:g} requests a second"
            raise ProblemError("rate-limited", detail, retry_after=math.ceil(wait))

    def _read(self) -> dict[str, Token]:
        tokens = self._of_environment
        if self._config.tokens is not None:
            content = read_file(self._config.tokens, self._config.storage_options, _PATIENCE)
            tokens += read_tokens(content.decode("utf-8", "replace"), self._config.tokens)
        return {token.sha256: token for token in tokens}


class _Bucket:
    """Fills with `rate` turns a second up to a second's worth, at least one; a request takes one."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate = rate
        self._clock = clock
        self._turns = max(1.0, rate)
        self._since = clock()

    def take(self) -> float:
        """0 if there was a turn, else the seconds until there is one."""
        now = self._clock()
        self._turns = min(max(1.0, self.rate), self._turns + (now - self._since) * self.rate)
        self._since = now
        if self._turns < 1:
            return (1 - self._turns) / self.rate
        self._turns -= 1
        return 0.0


def is_loopback(host: str | None) -> bool:
    """Whether an address or host name means this machine alone."""
    if host is None or host == "localhost":
        return host is not None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return re.sub(r"\s+", " ", f"{place}: {first['msg']}")
