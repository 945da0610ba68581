"""rl-zoo3 learns of ``per_ddqn``."""

from contextlib import suppress

import rl_zoo3.exp_manager
import rl_zoo3.train
import rl_zoo3.utils
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_per_dqn.minatar import register_minatar
from sb3_per_dqn.per_double_dqn import PerDoubleDQN
from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.search_space import convert_per_ddqn_params, sample_per_ddqn_params
from sb3_per_dqn.zoo.evaluation import create_evaluation_env
from sb3_per_dqn.zoo.manager import RunManager
from sb3_per_dqn.zoo.models import get_model_path


def register() -> None:
    """Make the zoo know ``per_ddqn``, and MinAtar where it is installed. Doing it twice is harmless."""
    ALGOS["per_ddqn"] = PerDoubleDQN
    HYPERPARAMS_SAMPLER["per_ddqn"], HYPERPARAMS_CONVERTER["per_ddqn"] = sample_per_ddqn_params, convert_per_ddqn_params
    # For replay_buffer_class in the YAML, which the zoo evaluates there
    rl_zoo3.exp_manager.DeviceReplayBuffer = DeviceReplayBuffer  # type: ignore[attr-defined]
    rl_zoo3.train.ExperimentManager = RunManager  # type: ignore[attr-defined]
    # enjoy and record_video take these from there when they are run
    rl_zoo3.create_test_env = rl_zoo3.utils.create_test_env = create_evaluation_env
    rl_zoo3.utils.get_model_path = get_model_path
    with suppress(ModuleNotFoundError):  # check_env_id() says so when a game of it is asked for
        register_minatar()
