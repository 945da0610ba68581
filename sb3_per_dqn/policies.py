"""SB3's DQN policies with a dueling Q-network."""

from typing import TYPE_CHECKING, Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn import policies as dqn_policies
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn


class PlainQNetwork(QNetwork):
    """
    SB3's ``QNetwork``, bit for bit, which decides once what is an image.

    SB3 compares the bounds of every pixel in every pass, which takes time and cannot be compiled.

    :param args: as for SB3's ``QNetwork``
    :param kwargs: as for SB3's ``QNetwork``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        space = self.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.images = [name for name, part in parts.items() if self.normalize_images and is_image_space(part)]

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """
        :param obs: batch of observations
        :param features_extractor: what turns them into features
        :return: features, shape (batch, features_dim)
        """
        floats: Any = preprocess_obs(obs, self.observation_space, normalize_images=False)
        if isinstance(obs, dict):
            floats.update({name: _to_unit_interval(floats[name], obs[name]) for name in self.images})
        elif self.images:
            floats = _to_unit_interval(floats, obs)
        features: th.Tensor = features_extractor(floats)
        return features


def _to_unit_interval(floats: th.Tensor, given: th.Tensor) -> th.Tensor:
    # in place where the floats are our own, for 32 stacks of frames are 3.6 MB
    return floats / 255.0 if floats is given else floats.div_(255.0)


class DuelingQNetwork(PlainQNetwork):
    """
    Q-network with a stream for the state's value and one for the actions' advantages (Wang et al., 2016).

    Paper: https://arxiv.org/abs/1511.06581

    :param args: as for SB3's ``QNetwork``; ``net_arch`` gives the hidden layers of each of the two streams
    :param kwargs: as for SB3's ``QNetwork``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.q_net  # the two streams take the place of SB3's one
        action_dim = int(self.action_space.n)
        self.value_net = nn.Sequential(*create_mlp(self.features_dim, 1, self.net_arch, self.activation_fn))
        self.advantage_net = nn.Sequential(
            *create_mlp(self.features_dim, action_dim, self.net_arch, self.activation_fn)
        )

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: batch of observations
        :return: Q-values, shape (batch, n_actions)
        """
        features = self.extract_features(obs, self.features_extractor)
        value = self.value_net(features)  # (batch, 1)
        advantages = self.advantage_net(features)  # (batch, n_actions)
        # Eq. 9: without the mean taken away, value and advantages would be free up to a constant
        q_values: th.Tensor = value + advantages - advantages.mean(dim=1, keepdim=True)
        return q_values


# For the type checker the mixin is a DQNPolicy; at run time it is mixed into each of SB3's three.
if TYPE_CHECKING:
    _Base = DQNPolicy
else:
    _Base = object


class _DuelingMixin(_Base):
    def __init__(self, *args: Any, dueling: bool = True, **kwargs: Any) -> None:
        self.dueling = dueling  # before the constructor, which calls make_q_net()
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> QNetwork:
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        network = DuelingQNetwork if self.dueling else PlainQNetwork
        return network(**net_args).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "dueling": self.dueling}


class MlpPolicy(_DuelingMixin, dqn_policies.MlpPolicy):
    """
    SB3's DQN ``MlpPolicy`` with a :class:`DuelingQNetwork`.

    :param args: as for SB3's policy
    :param dueling: ``False`` gives SB3's own network
    :param kwargs: as for SB3's policy
    """


class CnnPolicy(_DuelingMixin, dqn_policies.CnnPolicy):
    """
    SB3's DQN ``CnnPolicy`` with a :class:`DuelingQNetwork`.

    :param args: as for SB3's policy
    :param dueling: ``False`` gives SB3's own network
    :param kwargs: as for SB3's policy
    """


class MultiInputPolicy(_DuelingMixin, dqn_policies.MultiInputPolicy):
    """
    SB3's DQN ``MultiInputPolicy``, for Dict observations, with a :class:`DuelingQNetwork`.

    :param args: as for SB3's policy
    :param dueling: ``False`` gives SB3's own network
    :param kwargs: as for SB3's policy
    """
