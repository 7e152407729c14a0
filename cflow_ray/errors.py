"""The errors a user can cause or must handle; each message says what was given, what is allowed and what to do."""

from __future__ import annotations


class CflowRayError(Exception):
    """An expected failure; the command line prints it on one line and exits with `exit_code`."""

    exit_code = 1


class ConfigError(CflowRayError):
    """A configuration, flag or YAML key that is not allowed: misuse, exit code 2."""

    exit_code = 2


class DataError(CflowRayError):
    """A data set, archive or table that cannot be used as given."""


class RecordError(CflowRayError):
    """One record that cannot be scored; pipelines turn it into a row with `error`."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
        """A word to count by: `too_large`, `duplicate_key`, ..."""

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str]]:
        """For Ray, which carries errors between processes."""
        return type(self), (str(self), self.kind)


class ImageError(RecordError):
    """One image whose bytes cannot be decoded."""

    def __init__(self, message: str, kind: str = "damaged_image") -> None:
        super().__init__(message, kind)


class StorageError(CflowRayError):
    """A location that cannot be reached, read or written."""


class MissingFileError(StorageError):
    """A file or folder that is not there."""


class CheckpointError(CflowRayError):
    """A checkpoint or registry that is missing, incomplete, or of a format this version does not read."""


class FitError(CflowRayError):
    """A fit that cannot give a usable detector."""


class ServingError(CflowRayError):
    """A server that could not be started or did not answer as promised."""
