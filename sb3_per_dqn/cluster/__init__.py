"""Environments and actors on a Ray cluster. Nothing else of this package imports Ray."""

try:
    import ray as ray
except ModuleNotFoundError as error:
    raise ImportError(f"sb3_per_dqn.cluster needs {error.name}: pip install 'sb3-per-dqn[ray]'") from error

from sb3_per_dqn.cluster.ray_vec_env import RayVecEnv
from sb3_per_dqn.cluster.remote_actors import RemoteActors

__all__ = ["RayVecEnv", "RemoteActors"]
