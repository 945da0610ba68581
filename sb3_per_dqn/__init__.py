"""Double, dueling, prioritized DQN for Stable-Baselines3."""

from sb3_per_dqn.atari import make_atari_vec_env
from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer
from sb3_per_dqn.schedules import PiecewiseSchedule
from sb3_per_dqn.sharing import export_model, load_model

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
    "make_atari_vec_env",
]
