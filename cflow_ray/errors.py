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


class ImageError(CflowRayError):
    """One image that cannot be scored; pipelines turn it into a row with `error`."""


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
