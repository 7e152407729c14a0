"""A scoring job whose records a server scores: the same plan, parts and table, without Ray and without a registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

from cflow_ray.answers import ProblemAnswer, ScoreAnswer
from cflow_ray.client import Client, ProblemError
from cflow_ray.config import AskConfig
from cflow_ray.data.archives import Record
from cflow_ray.data.images import decode_map, encode_map
from cflow_ray.errors import CflowRayError, CheckpointError, ConfigError, RecordError, ServingError
from cflow_ray.score.job import Job
from cflow_ray.score.plan import Plan, PlannedCheckpoint, plan_with
from cflow_ray.score.reading import read_chunks
from cflow_ray.score.rows import Row, content_of, count_rows, error_columns, image_id, row_of
from cflow_ray.score.summary import JobSummary
from cflow_ray.store.ahead import computed_ahead
from cflow_ray.store.results import UNREADABLE, PartName, write_part
from cflow_ray.store.storage import Storage, read_file

TOKEN_VARIABLE = "CFLOW_RAY_TOKEN"
_KINDS = {"too-large": "too_large", "unsupported-media": "no_image", "unknown-category": "unknown_category"}
_PASSING = {408, 429, 500, 502, 503, 504}


def score_online(
    config: AskConfig, client: Client, output: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> JobSummary:
    """Let a server score the inputs into `output`; a second call with the same settings does only what is not finished.

    `progress` gets finished and all known chunks. A record that cannot be read, or that the server refuses or gives up, is
    a row with `error`. Raises a CflowRayError where inputs or output cannot be used, the server gives no answer, wants
    another token, or answers with another version than it had when the job was planned.
    """
    start = time.monotonic()
    results = Storage(output, config.storage_options)
    plan = plan_with(config, results, lambda: _served(client, config))
    job = Job.of(plan, results, config, start)
    progress(job.rest.done, job.rest.chunks)
    asking = _Asking(plan, client, config.in_flight)
    for span in job.rest.shards:
        for first, records in read_chunks(span, plan, results):
            job.run.add_chunk(_score_chunk(asking, PartName(span.shard, first), records, results))
            progress(job.rest.done + job.run.chunks, job.rest.chunks)
    return job.finish()


def read_token(config: AskConfig, environment: Mapping[str, str]) -> str | None:
    """The access token of a file or, where none is named, of the environment; None where there is neither."""
    if config.token_file is None:
        return environment.get(TOKEN_VARIABLE) or None
    token = read_file(config.token_file, config.storage_options).decode("utf-8", "replace").strip()
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise ConfigError(f"{config.token_file} holds no access token; one line of letters and digits is needed.")
    return token


def _served(client: Client, config: AskConfig) -> dict[str, PlannedCheckpoint]:
    """What the server has for each category now."""
    served = {
        one.category: PlannedCheckpoint(
            version=one.checkpoint, input=None, target_fpr=config.target_fpr or one.target_fpr
        )
        for one in client.categories()
    }
    if not served or (config.category is not None and config.category not in served):
        raise CheckpointError(
            f"{client.url} serves no {config.category or 'category'}; it has {', '.join(served) or 'none'}. "
            "Give one of them as --category, or promote one: cflow-ray models promote ..."
        )
    return served


def _score_chunk(asking: _Asking, part: PartName, records: Iterable[Record], results: Storage) -> Row:
    """Write the part of a chunk; what the summary counts of it."""
    start = perf_counter()
    asked = list(computed_ahead(asking.ask, records, asking.in_flight))
    scored = perf_counter()
    rows, maps = [], {}
    for number, one in enumerate(asked, start=part.first):
        one.row["image_id"] = image_id(part.shard, one.row, number)
        if one.map is not None:
            maps[one.row["key"]] = one.map
            one.row["map"] = part.maps_path
        rows.append(one.row)
    written = write_part(results, part, rows, maps)
    return {
        **count_rows(rows),
        "bytes_read": sum(one.bytes_read for one in asked),
        "bytes_written": written,
        "read_seconds": 0.0,  # between requests; and the server decodes
        "decode_seconds": 0.0,
        "score_seconds": scored - start,
        "write_seconds": perf_counter() - scored,
    }


@dataclass(frozen=True)
class _Asked:
    """A record's row, its map as it is stored, and the bytes of its image."""

    row: Row
    map: bytes | None = None
    bytes_read: int = 0


class _Asking:
    """Asks the server for one record after the other, from several threads."""

    def __init__(self, plan: Plan, client: Client, in_flight: int) -> None:
        self._plan = plan
        self._client = client
        self.in_flight = in_flight

    def ask(self, record: Record) -> _Asked:
        """The row of a record; raises ServingError where no further record would be answered either."""
        row = row_of(record)
        try:
            content = content_of(record)
            row["category"] = self._plan.category_of(record)
        except CflowRayError as error:
            return _Asked(row | error_columns(error))
        try:
            answer = self._answer(row["category"], content)
        except RecordError as error:
            return _Asked(row | error_columns(error), bytes_read=len(content))
        return _Asked(row | _verdict(answer), self._map(answer), len(content))

    def _answer(self, category: str, content: bytes) -> ScoreAnswer:
        plan = self._plan
        try:
            answer = self._client.score(category, content, with_map=plan.maps != "none", target_fpr=plan.target_fpr)
        except ProblemError as error:
            kind = _kind_of(error.problem)
            if kind is None:
                raise
            raise RecordError(error.problem.detail, kind) from error
        planned = plan.checkpoints[category].version
        if answer.checkpoint != planned:
            raise ServingError(
                f"the server answers {category} with {answer.checkpoint} now; this job began with {planned} and mixes no "
                "versions. Promote that one again, or begin another job with another --output."
            )
        if plan.maps != "none" and answer.frame is None:
            raise ServingError(
                "the server does not say what of an image its maps cover. Leave out --maps, or ask a newer server."
            )
        return answer

    def _map(self, answer: ScoreAnswer) -> bytes | None:
        plan = self._plan
        if answer.map_png is None or (plan.maps == "anomalous" and not answer.is_anomaly):
            return None
        return encode_map(decode_map(answer.map_png), plan.map_format, plan.map_size)


def _kind_of(problem: ProblemAnswer) -> str | None:
    """The kind of a record's error, as an archive job would name it; None where it is not the record's fault."""
    if problem.kind == "bad-image":
        return str((problem.model_extra or {}).get("reason", "damaged_image"))
    if problem.status in _PASSING:
        return UNREADABLE  # --retry-errors asks again
    return _KINDS.get(problem.kind)


def _verdict(answer: ScoreAnswer) -> Row:
    """The columns of an answer."""
    columns = ("checkpoint", "score", "p_value", "is_anomaly", "threshold", "width", "height", "frame", "regions")
    return {name: value for name, value in answer.model_dump().items() if name in columns}
