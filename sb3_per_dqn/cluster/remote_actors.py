"""Acting on a cluster, learning here: Distributed Prioritized Experience Replay (Horgan et al., 2018)."""

from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from gymnasium.vector.utils import create_empty_array
from ray.exceptions import RayActorError, RayError, RayTaskError
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_per_dqn.acting import ActingVecEnv
from sb3_per_dqn.arguments import check_whole
from sb3_per_dqn.cluster.acting_actor import ActingActor, Settings, epsilons
from sb3_per_dqn.cluster.actors import ActorVecEnv, EnvFn, joined
from sb3_per_dqn.cluster.fragment import Fragment, Version
from sb3_per_dqn.cluster.playback import Playback, Request
from sb3_per_dqn.cluster.statistics import ActingStatistics
from sb3_per_dqn.workers import WorkerError, is_number

WAIT_SECONDS = 1.0  # between two looks at who has sent nothing
PATIENCE_SECONDS = 10.0  # and two fragments' time: then others are asked for more, so that a slow one keeps its turn


class RemoteActors(ActorVecEnv, ActingVecEnv):
    """
    Environments that are played by copies of the policy in Ray actors, on this machine or on a cluster.

        model = PerDoubleDQN("MlpPolicy", RemoteActors(make_env, n_actors=4, envs_per_actor=8))
        model.learn(1_000_000)

    Each actor plays a fragment of some steps with the weights that it was given last, and sends it with its TD errors,
    from which the initial priorities are made. Here, the fragments are played back, as the steps of so many
    environments as the actors have together, so that all else is as with any vectorized environment: ``train_freq``
    and ``gradient_steps`` hold exactly, for the learner waits for fragments, or the actors for it. Where another
    actor's fragment follows (its own is not there yet), a stream breaks off, which replay memory takes into account.

    Exploration is the actors' own: the i-th of all N environments takes random actions with probability
    ``base_eps ** (1 + eps_alpha * i / (N - 1))``; ``exploration`` and SB3's arguments for it are without effect. Until
    learning starts (``learning_starts``), all actions are random, as in SB3.

    An actor that ends, hangs, or whose environment raises an error is replaced, with a warning, while the others go on.
    What it was asked for is lost; no step comes twice. Where the cluster has no room for another one yet, the others
    play its part.

    :param env_fn: makes an environment; or a list of functions, one for each environment
    :param n_actors: how many actors
    :param envs_per_actor: how many environments each of them has
    :param fragment: steps of each environment that an actor sends at once
    :param publish_every: environment steps after which the actors get new weights, with what they are asked for next;
        ``None`` is whenever they are asked for something
    :param max_pending: for how many fragments each actor is asked when the last ones were played, the next one to be
        played included: with 1 nobody acts meanwhile, and 2 is one in advance. So many can wait in Ray's memory
    :param base_eps: epsilon of the first environment, in [0, 1]
    :param eps_alpha: how much less the last one explores, 0 or more
    :param vec_env_wrapper: put around the vectorized environment of each actor: ``partial(VecFrameStack, n_stack=4)``
    :param timeout: seconds without a fragment after which an actor is taken to hang (a reset counts from when it is
        asked for, though fragments may come first)
    :param restarts: how many actors may be replaced, in all
    :param num_cpus: processors that Ray reserves for an actor
    :param ray_address: of a cluster, if Ray is not initialized yet; ``None`` takes that of ``RAY_ADDRESS``, or of
        ``ray start`` on this machine, or starts Ray here, and ``"local"`` does so in any case
    :raises ValueError: if an argument is out of range, or the cluster too small
    :raises WorkerError: if an environment cannot be made, with its own traceback
    """

    def __init__(
        self,
        env_fn: EnvFn | Sequence[EnvFn],
        n_actors: int,
        envs_per_actor: int = 1,
        fragment: int = 50,
        publish_every: int | None = None,
        max_pending: int = 2,
        base_eps: float = 0.4,
        eps_alpha: float = 7.0,
        vec_env_wrapper: Callable[[VecEnv], VecEnv] | None = None,
        timeout: float = 600.0,
        restarts: int = 10,
        num_cpus: float = 1.0,
        ray_address: str | None = None,
    ) -> None:
        wholes = {"n_actors": n_actors, "envs_per_actor": envs_per_actor, "fragment": fragment}
        for name, value in {**wholes, "max_pending": max_pending}.items():
            check_whole(name, value, 1)
        n_envs = n_actors * envs_per_actor
        publish_every = 1 if publish_every is None else publish_every
        check_whole("publish_every", publish_every, 1)
        if not is_number(base_eps) or not 0.0 <= base_eps <= 1.0:
            raise ValueError(f"base_eps={base_eps!r} must be a number in [0, 1].")
        if not is_number(eps_alpha) or eps_alpha < 0.0:
            raise ValueError(f"eps_alpha={eps_alpha!r} must be a number, 0 or more.")
        env_fns = [env_fn] * n_envs if callable(env_fn) else list(env_fn)
        if not all(map(callable, env_fns)):
            raise ValueError(f"env_fn={env_fn!r} must be a function that makes an environment, or a list of such.")
        if len(env_fns) != n_envs:
            raise ValueError(
                f"env_fn has {len(env_fns)} functions, for {n_actors} actors with {envs_per_actor} environments each: "
                f"give {n_envs}, or one for all."
            )
        self.epsilons = epsilons(n_envs, base_eps, eps_alpha)
        self.fragment, self.publish_every, self.max_pending = fragment, publish_every, max_pending
        self._requests: dict[Any, Request] = {}  # by what Ray knows them by, the oldest first
        self._streams = [0] * n_actors
        self._asked_since = [0] * n_actors  # fragments of the present streams
        self._busy_since = [0.0] * n_actors
        self._absent: dict[int, Any] = {}  # those that replaced others, and what they will answer when they have begun
        self._longest = 0.0  # seconds that a fragment took lately
        self._n_streams = 0
        self._playing: list[Playback | None] = [None] * n_actors
        self._actions: npt.NDArray[Any] | None = None
        self._settings: Settings | None = None
        self._policy: Any = None
        self._version = Version(0, 0, 0)
        self._statistics = ActingStatistics(n_actors)
        actor_args = vec_env_wrapper, self.epsilons
        super().__init__(env_fns, envs_per_actor, ActingActor, actor_args, timeout, restarts, num_cpus, ray_address)
        self._new_streams(range(n_actors))

    def _new_streams(self, actors: Sequence[int]) -> None:
        for actor in actors:
            self._n_streams += 1
            self._streams[actor], self._asked_since[actor] = self._n_streams, 0
            self._busy_since[actor] = monotonic()

    def reset(self) -> VecEnvObs:
        """
        Begin new episodes everywhere. What is on the way is dropped.

        :return: the first observations (zeros of an actor that has no room yet, or is replaced: ``acted`` has its own)
        :raises WorkerError: if an actor is lost and may not be replaced
        """
        self._check_open()
        self._requests.clear()
        self._playing = [None] * len(self._parts)
        self._policy = None  # new weights, whatever happened to them
        self._notice([])
        for actor in list(self._absent):
            self._start_another(actor)  # for what it was asked for so far is dropped
        refs = {
            actor: self._actors[actor].reset.remote(
                self._seeds[part.start : part.stop], self._options[part.start : part.stop]
            )
            for actor, part in enumerate(self._parts)
            if actor not in self._absent
        }
        ray.wait(list(refs.values()), num_returns=max(len(refs), 1), timeout=self.timeout, fetch_local=False)
        obs, infos = zip(*(self._first(actor, refs.get(actor)) for actor in range(len(self._parts))), strict=True)
        self.reset_infos = [info for of_actor in infos for info in of_actor]
        self._reset_seeds()
        self._reset_options()
        self._new_streams(range(len(self._parts)))
        first: VecEnvObs = joined(obs)
        return first

    def _first(self, actor: int, ref: Any) -> tuple[Any, list[dict[str, Any]]]:
        """
        :param actor: that was told to reset its environments, or is absent
        :param ref: to its answer
        :return: the answer, or nothing
        """
        if ref is not None:
            try:
                answer: tuple[Any, list[dict[str, Any]]] = self._answer(actor, ref, waited=True)
                return answer
            except WorkerError as error:
                self._replace(actor, str(error))
        n_envs = len(self._parts[actor])
        return create_empty_array(self.observation_space, n_envs), [{} for _ in range(n_envs)]

    def acted(self, model: Any) -> tuple[VecEnvObs, np.ndarray, np.ndarray]:
        """
        :param model: that learns from it, and whose weights are to act
        :return: observations before the next step; its actions; and where it does not follow the last step
        :raises WorkerError: if an actor is lost and may not be replaced
        """
        self._check_open()
        if any(last is None or last.ended for last in self._playing):  # all end together
            self._follow(model)
            self._ask_for_more()
        broken = np.zeros(self.num_envs, dtype=bool)
        playing: list[Playback] = []
        for group, part in enumerate(self._parts):
            last = self._playing[group]
            now = self._next(group, model.num_timesteps, model._n_updates) if last is None or last.ended else last
            broken[part.start : part.stop] = now is not last and not now.follows(last)
            self._playing[group] = now
            playing.append(now)
        self._actions = np.concatenate([one.actions for one in playing])
        return joined([one.observations for one in playing]), self._actions, broken

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: as ``acted`` gave them
        :raises ValueError: if they are others
        """
        if actions is not self._actions:
            raise ValueError("RemoteActors choose their actions themselves: evaluate a policy in another environment.")
        self._actions = None

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones, infos
        """
        steps = [playing.step() for playing in self._playing if playing is not None]
        obs, rewards, dones, infos = zip(*steps, strict=True)
        return joined(obs), np.concatenate(rewards), np.concatenate(dones), [info for part in infos for info in part]

    def _follow(self, model: Any) -> None:
        """
        :param model: whose weights are published if it is time, and with them what else the actors need
        """
        buffer, old = model.replay_buffer, self._settings
        gamma, n_steps = getattr(buffer, "gamma", model.gamma), getattr(buffer, "n_steps", model.n_steps)
        is_new = model.policy is not self._policy
        numbers = gamma, n_steps, model.learning_starts
        if old is None or is_new or (old.gamma, old.n_steps, old.learning_starts) != numbers:
            number = 0 if old is None else old.number + 1
            self._settings = Settings(number, model.policy_class, model.policy_kwargs, *numbers)
            self._settings_ref = ray.put(self._settings)
        starts = self._version.timesteps < model.learning_starts <= model.num_timesteps  # and random actions end
        if is_new or starts or model.num_timesteps >= self._version.timesteps + self.publish_every:
            weights = {name: tensor.cpu().numpy() for name, tensor in model.policy.q_net.state_dict().items()}
            self._version = Version(self._version.number + 1, model.num_timesteps, model._n_updates)
            self._weights_ref = ray.put(weights)
        self._policy = model.policy

    def _next(self, group: int, timesteps: int, updates: int) -> Playback:
        """
        :param group: of environments, that has played its last fragment
        :param timesteps: of the learner
        :param updates: likewise
        :return: the next fragment: its own actor's, if that is there, or else the oldest that is
        """
        while True:
            ref = self._finished(group)
            request = self._requests.pop(ref)
            try:
                with self._statistics.timed("fetching"):
                    fragment: Fragment = ray.get(ref, timeout=self.timeout)
            except RayError as error:
                self._lose(request, error)
                continue
            seconds = sum(fragment.seconds.values()) - fragment.seconds.get("waiting", 0.0)
            self._longest = max(0.9 * self._longest, seconds)
            self._statistics.record(fragment, timesteps, updates)
            with self._statistics.timed("unpacking"):
                return Playback(request, fragment)

    def _ask_for_more(self) -> None:
        asked = Counter(request.stream for request in self._requests.values())
        for actor, stream in enumerate(self._streams):
            self._ask(actor, self.max_pending - asked[stream])

    def _ask(self, actor: int, fragments: int) -> None:
        if actor not in self._owing():
            self._busy_since[actor] = monotonic()
        for _ in range(fragments):
            ref = self._actors[actor].act.remote(self._settings_ref, self._weights_ref, self._version, self.fragment)
            self._requests[ref] = Request(actor, self._streams[actor], self._asked_since[actor])
            self._asked_since[actor] += 1

    def _owing(self) -> set[int]:
        """
        :return: the actors that were asked for what they have not finished. (What others were asked for that they took
            the place of will not come.)
        """
        unfinished = (request for request in self._requests.values() if not request.finished)
        return {request.actor for request in unfinished if request.stream == self._streams[request.actor]}

    def _finished(self, group: int) -> Any:
        """
        :param group: of environments
        :return: the fragment to take, or one that is lost
        :raises WorkerError: if nobody is there any more to send one
        """
        since, wait = monotonic(), 0.0
        while True:
            refs = list(self._requests)
            with self._statistics.timed("waiting"):
                # finished wherever it is: with fetch_local, what is on another node would not count
                ready, _ = ray.wait(refs, num_returns=1 if wait else len(refs), timeout=wait, fetch_local=False)
            self._notice(ready)
            there = [ref for ref in refs if self._requests[ref].finished]
            if there:
                return next((ref for ref in there if self._requests[ref].actor == group), there[0])
            self._ask_who_is_free(since)
            wait = WAIT_SECONDS

    def _ask_who_is_free(self, since: float) -> None:
        """
        Where nobody who was asked can be counted on, the others do more.

        :param since: when the learner began to wait
        :raises WorkerError: if there are no others
        """
        owing, now = self._owing(), monotonic()
        patience = min(PATIENCE_SECONDS + 2 * self._longest, self.timeout)
        if any(actor not in self._absent and now <= self._busy_since[actor] + patience for actor in owing):
            return
        for actor in set(range(len(self._parts))) - owing:
            self._ask(actor, 1)
        if now > since + self.timeout and self._absent.keys() >= self._owing():
            raise WorkerError(
                f"No actor has sent anything for {self.timeout:g} seconds: Ray has no room for those that replace "
                "others, or their environments cannot be made."
            )

    def _notice(self, ready: Sequence[Any]) -> None:
        """
        :param ready: of all that were asked for, those that are there (or lost); who is late with another one, is
            replaced
        """
        now = monotonic()
        for actor, ref in list(self._absent.items()):
            if ray.wait([ref], timeout=0, fetch_local=False)[0]:
                del self._absent[actor]
                self._busy_since[actor] = now
        for ref in ready:
            request = self._requests[ref]
            if not request.finished:
                request.finished = True
                if request.stream == self._streams[request.actor]:
                    self._busy_since[request.actor] = now
        for actor in self._owing() - self._absent.keys():
            if now > self._busy_since[actor] + self.timeout:
                self._replace(actor, f"Actor {actor} has sent nothing for {self.timeout:g} seconds: it hangs.")

    def _lose(self, request: Request, error: RayError) -> None:
        """
        :param request: whose fragment does not come
        :param error: why
        """
        self._statistics.lose(self.fragment * len(self._parts[request.actor]))
        if request.stream == self._streams[request.actor]:  # else its actor is replaced already
            self._replace(request.actor, self._what_happened(request.actor, error))

    def _start_another(self, actor: int) -> None:
        super()._start_another(actor)
        self._absent[actor] = self._actors[actor].spaces.remote()
        self._new_streams([actor])

    def _got(self, actor: int, method: str, args: tuple[Any, ...], asked: Any, ref: Any) -> Any:
        while True:
            try:
                return self._answer(actor, ref)
            except WorkerError as error:
                if not isinstance(error.__cause__, RayActorError) or isinstance(error.__cause__, RayTaskError):
                    raise
                if asked is self._actors[actor]:  # who was asked several things is replaced once
                    self._replace(actor, str(error))
            asked = self._actors[actor]
            ref = getattr(asked, method).remote(*args)

    def statistics(self) -> dict[str, float]:
        """
        :return: see ``ActingStatistics.summary``
        """
        return {**self._statistics.summary(), "replaced": self.restarted, "absent": len(self._absent)}
