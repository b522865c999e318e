"""Errors that a user can act on. Each message names what is wrong, where, and the remedy."""

USER_ERROR = 2  # exit status, as argparse has it


class Medr1Error(Exception):
    """Base of all errors that are shown to the user as one message, without a traceback."""


class ConfigError(Medr1Error):
    """A setting, or a combination of settings, that cannot work."""


class DataError(Medr1Error):
    """A data root, a file or a record that cannot be used."""


class CheckpointError(Medr1Error):
    """A model or a training checkpoint that is missing, damaged or of the wrong kind."""


class RewardError(Medr1Error):
    """A reward function that returns unusable values."""


class TrainingError(Medr1Error):
    """A training that has broken down: its loss, gradient or weights are not finite."""


class StorageError(Medr1Error):
    """A disk that is full, or a file or directory that may not be written."""


class ServerError(Medr1Error):
    """A chat server that does not answer, or answers what cannot be used."""


class ServerUnavailable(ServerError):
    """A server that does not answer now; it may do so later."""


class ServerTimeout(ServerUnavailable):
    """A server that was reached and has not answered in time."""


class TrackingError(Medr1Error):
    """An MLflow server that does not answer when a run begins, or that refuses what it is sent."""
