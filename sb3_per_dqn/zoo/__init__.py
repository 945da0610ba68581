"""
rl-zoo3 with ``per_ddqn``. Importing this module is enough: the zoo's own ``train()`` then knows the algorithm.

The zoo has no hook for plugins. The algorithm goes into its dictionary, and one subclass of its
``ExperimentManager`` takes that class's place; environments for watching a model are put into evaluation mode.

    attributes       others for a while
    values           NAME:VALUE on the command line
    evaluation       environments for watching and scoring
    remote           on a Ray cluster
    hyperparameters  what a run is asked for
    models           where a run's model is
    finished         its score and its video
    manager          the run
    registration     what the zoo is told
    commands         the zoo's tools, run by us

Each imports from those above it alone.
"""

from sb3_per_dqn.zoo.commands import arose_in_training, run_command
from sb3_per_dqn.zoo.evaluation import GAME_WRAPPER
from sb3_per_dqn.zoo.hyperparameters import hyperparams_folder
from sb3_per_dqn.zoo.manager import RunManager
from sb3_per_dqn.zoo.registration import register

__all__ = [
    "GAME_WRAPPER",
    "RunManager",
    "arose_in_training",
    "hyperparams_folder",
    "register",
    "run_command",
]

register()
