"""Models as folders to share: written and read without pickle."""

from sb3_per_dqn.sharing.environment import EnvironmentSettings
from sb3_per_dqn.sharing.model_folder import export_model, load_model
from sb3_per_dqn.sharing.plain import ModelFolderError

__all__ = ["EnvironmentSettings", "ModelFolderError", "export_model", "load_model"]
