"""SB3's DQN policies with a dueling Q-network."""

from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn import policies as dqn_policies
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn


class DuelingQNetwork(QNetwork):
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
        if not self.dueling:
            return super().make_q_net()
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        q_net: QNetwork = DuelingQNetwork(**net_args).to(self.device)
        return q_net

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
