"""Learning while the environments step."""

from collections.abc import Callable
from contextlib import suppress

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class OverlappedVecEnv(VecEnvWrapper):
    """
    Calls a function between ``step_async`` and ``step_wait``, when worker processes are busy and this one is not.

    :param venv: the environments
    :param meanwhile: what to do in each step
    """

    def __init__(self, venv: VecEnv, meanwhile: Callable[[], None]) -> None:
        super().__init__(venv)
        self.meanwhile = meanwhile

    def reset(self) -> VecEnvObs:
        """
        :return: the first observations
        """
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones, infos
        """
        try:
            self.meanwhile()
        except BaseException:
            with suppress(Exception):  # the workers may be gone, and what happened first is what matters
                self.venv.step_wait()  # or the next reset would read the workers' answers to this step as its own
            raise
        return self.venv.step_wait()
