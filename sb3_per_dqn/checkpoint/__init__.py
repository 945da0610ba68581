"""A whole run on disk, and back: exact to the bit."""

from sb3_per_dqn.checkpoint.files import CheckpointError
from sb3_per_dqn.checkpoint.run import RunCheckpoints

__all__ = ["CheckpointError", "RunCheckpoints"]
