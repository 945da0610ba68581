"""Double, dueling, prioritized DQN for Stable-Baselines3."""

from typing import TYPE_CHECKING, Any

from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer
from sb3_per_dqn.schedules import PiecewiseSchedule
from sb3_per_dqn.sharing import export_model, load_model

if TYPE_CHECKING:
    from sb3_per_dqn.atari import make_atari_vec_env as make_atari_vec_env

__version__ = "0.1.0"

__all__ = [
    "CnnPolicy",
    "DeviceReplayBuffer",
    "MlpPolicy",
    "MultiInputPolicy",
    "PerDoubleDQN",
    "PiecewiseSchedule",
    "PrioritizedReplayBuffer",
    "__version__",
    "export_model",
    "load_model",
]  # and make_atari_vec_env, which import * must not ask for: Atari's emulators are an extra


def __getattr__(name: str) -> Any:
    if name == "make_atari_vec_env":
        from sb3_per_dqn.atari import make_atari_vec_env

        return make_atari_vec_env
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
