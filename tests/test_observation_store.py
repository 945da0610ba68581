"""Where observations live: how the layout is found, left, demanded and forbidden, and what it costs."""

import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_per_dqn.replay import observation_store
from sb3_per_dqn.replay.frame_store import FrameLayout, FrameStore, bits, frame_layouts
from sb3_per_dqn.replay.observation_store import ArrayStore, DictStore, make_observation_store
from tests.naive_replay import StackStream

ATARI = spaces.Box(0, 255, (4, 84, 84), dtype=np.uint8)
N_ENVS = 3
ALL, NONE = np.ones(N_ENVS, dtype=bool), np.zeros(N_ENVS, dtype=bool)


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (N_ENVS, *shape), dtype=np.uint8)


def add(
    store: Any, step: int, obs: Any, next_obs: Any, follows: np.ndarray = NONE, uses_next: np.ndarray = ALL
) -> None:
    store.prepare(step, obs, next_obs, uses_next)
    store.add(step, obs, next_obs, follows, uses_next)


def read(store: Any, step: int) -> Any:
    return store.get(np.full(N_ENVS, step), np.arange(N_ENVS))


def assert_holds(store: Any, step: int, obs: Any, next_obs: Any) -> None:
    for got, expected in zip(read(store, step), (obs, next_obs), strict=True):
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()


def streams(shape: tuple[int, ...], axis: int, depth: int, dtype: Any = np.uint8) -> list[StackStream]:
    return [StackStream(shape, axis, depth, dtype, np.random.default_rng(env)) for env in range(N_ENVS)]


def slide(parts: list[StackStream]) -> np.ndarray:
    return np.stack([stream.step() for stream in parts])


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 84, 85), np.uint8, [(0, 4), (0, 2), (-1, 85), (-1, 17), (-1, 5)]),
        ((85, 84, 4), np.uint8, [(-1, 4), (-1, 2), (0, 85), (0, 17), (0, 5)]),
        ((12, 9), np.float32, [(-1, 9), (-1, 3), (0, 12), (0, 6), (0, 4), (0, 3), (0, 2)]),
        ((6,), np.float64, [(0, 6), (0, 3), (0, 2)]),
        ((1,), np.float32, []),
        ((), np.float32, []),
    ],
)
def test_layouts_of_a_space(shape: tuple[int, ...], dtype: Any, expected: list[tuple[int, int]]) -> None:
    layouts = frame_layouts(spaces.Box(0, 1, shape, dtype))
    assert [(layout.axis, layout.depth) for layout in layouts] == expected


def test_other_spaces_have_no_layouts() -> None:
    for space in (spaces.Discrete(4), spaces.MultiBinary(4), spaces.MultiDiscrete([4, 4])):
        assert frame_layouts(space) == []


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (FrameLayout(0, 4), (4, 5, 6)),
        (FrameLayout(0, 2), (6, 5, 7)),
        (FrameLayout(-1, 3), (5, 7, 6)),
        (FrameLayout(0, 5), (5,)),
    ],
)
def test_split_and_join(layout: FrameLayout, shape: tuple[int, ...]) -> None:
    observations = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    frames = layout.split(observations)
    assert np.shares_memory(frames, observations)
    for i, frame in enumerate(np.split(observations, layout.depth, axis=layout.axis or 1)):
        np.testing.assert_array_equal(frames[:, i], frame)
    np.testing.assert_array_equal(layout.join(frames), observations)


def test_bits_tell_apart_what_equality_does_not() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        array = np.array([0.0, np.nan, 1.0], dtype=dtype)
        assert (bits(array) == bits(array.copy())).all()
        assert (bits(array) != bits(np.array([-0.0, 0.0, 2.0], dtype=dtype))).all()
    assert (bits(np.array([True, False])) == np.array([True, False])).all()


# ------------------------------------------------------------------------------------------------- choosing and leaving


@pytest.mark.parametrize(
    ("shape", "axis", "depth"),
    [((1, 6, 5), 0, 4), ((3, 6, 5), 0, 4), ((6, 5, 1), -1, 4), ((6, 5, 3), -1, 2), ((2,), 0, 3)],
)
def test_sliding_stacks_are_kept_once(shape: tuple[int, ...], axis: int, depth: int) -> None:
    parts = streams(shape, axis, depth)
    store: Any = make_observation_store(50, N_ENVS, parts[0].space)
    obs = np.stack([stream.reset() for stream in parts])
    for step in range(40):
        next_obs = slide(parts)
        add(store, step, obs, next_obs, follows=ALL if step else NONE)
        obs = next_obs
    assert isinstance(store._store, FrameStore)
    assert store._store.layout == FrameLayout(axis, depth)
    assert_holds(store, 39, read(store, 39)[0], obs)


def test_images_are_kept_whole_from_the_first_step() -> None:
    store: Any = make_observation_store(4, N_ENVS, ATARI)
    assert store.full_nbytes == 8 * N_ENVS * 7056 + 4 * N_ENVS * 2  # four rows, and four more for the history
    obs, next_obs = images(4, 84, 84), images(4, 84, 84, seed=1)
    add(store, 0, obs, next_obs)
    assert isinstance(store._store, ArrayStore)
    assert store.full_nbytes == store.nbytes == 2 * 4 * N_ENVS * 4 * 7056
    assert_holds(store, 0, obs, next_obs)


def test_what_still_pictures_seemed_to_be_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank at first, then stacks of three-channel frames, at last none at all: nothing stored is lost on the way."""
    space = spaces.Box(0, 255, (12, 14, 13), dtype=np.uint8)
    store: Any = make_observation_store(20, N_ENVS, space)
    blank = np.zeros((N_ENVS, 12, 14, 13), dtype=np.uint8)
    steps = [(blank, blank)] * 3
    for seed in range(5):
        obs = steps[-1][1]
        steps.append((obs, np.concatenate([obs[:, 3:], images(3, 14, 13, seed=seed)], axis=1)))
    depths = []
    for step, (obs, next_obs) in enumerate(steps):
        add(store, step, obs, next_obs, follows=ALL if step else NONE)
        depths.append(store._store.layout.depth)
    assert depths == [12, 12, 12, 4, 4, 4, 4, 4]
    for step, (obs, next_obs) in enumerate(steps):
        assert_holds(store, step, obs, next_obs)
    steps.append((images(12, 14, 13, seed=8), images(12, 14, 13, seed=9)))
    monkeypatch.setattr(observation_store, "WORTH_A_WARNING", 0)
    with pytest.warns(UserWarning, match=r"^At step 8 an observation is no sliding stack.* GB more"):
        add(store, 8, *steps[-1])
    assert isinstance(store._store, ArrayStore)
    for step, (obs, next_obs) in enumerate(steps):
        assert_holds(store, step, obs, next_obs)


def test_what_comes_after_a_termination_proves_nothing() -> None:
    """The next observation is never used there, and may be anything: it is no reason to give up single frames."""
    parts = streams((1, 6, 5), 0, 4)
    store: Any = make_observation_store(5, N_ENVS, parts[0].space, single_frames=True)
    obs, next_obs = np.stack([stream.reset() for stream in parts]), slide(parts)
    next_obs[1] = images(4, 6, 5)[1]
    add(store, 0, obs, next_obs, uses_next=np.array([True, False, True]))
    assert read(store, 0)[0].tobytes() == obs.tobytes()
    for env in (0, 2):
        assert read(store, 0)[1][env].tobytes() == next_obs[env].tobytes()


def test_stores_copy_in_and_out() -> None:
    """TRAPS 23."""
    for space in (ATARI, spaces.Box(0, 255, (6, 5, 3), dtype=np.uint8)):
        store: Any = make_observation_store(3, N_ENVS, space)
        blank = np.zeros((N_ENVS, *space.shape), dtype=np.uint8)
        obs, next_obs = blank.copy(), blank.copy()
        add(store, 0, obs, next_obs)
        for array in (obs, next_obs, *read(store, 0)):
            array.fill(7)
        assert_holds(store, 0, blank, blank)


# ----------------------------------------------------------------------------------------------- demanded and forbidden


def test_single_frames_can_be_forbidden() -> None:
    parts = streams((1, 6, 5), 0, 4)
    store: Any = make_observation_store(5, N_ENVS, parts[0].space, single_frames=False)
    add(store, 0, np.stack([stream.reset() for stream in parts]), slide(parts))
    assert isinstance(store._store, ArrayStore)


def test_the_first_violation_of_demanded_single_frames_is_named() -> None:
    """With step, environment and the way out; all that was stored is still there, and the run may go on."""
    parts = streams((1, 6, 5), 0, 4)
    store: Any = make_observation_store(5, N_ENVS, parts[0].space, single_frames=True)
    first, second, third = np.stack([stream.reset() for stream in parts]), slide(parts), slide(parts)
    add(store, 0, first, second)
    wrong = third.copy()
    wrong[2, 0] += 1
    before = pickle.dumps(store)
    message = r"but at step 1 of the buffer the observation of environment 2 is no sliding stack.*single_frames=None"
    with pytest.raises(ValueError, match=message):
        store.prepare(1, second, wrong, ALL)
    assert pickle.dumps(store) == before
    add(store, 1, second, third, follows=ALL)
    assert_holds(store, 0, first, second)
    assert_holds(store, 1, second, third)


def test_single_frames_of_a_space_without_frames() -> None:
    for space in (spaces.Discrete(3), spaces.Box(0, 1, (1,))):
        with pytest.raises(ValueError, match=r"single_frames=True, but the observation space .*single_frames=None"):
            make_observation_store(5, N_ENVS, space, single_frames=True)
    with pytest.raises(ValueError, match=r"single_frames=True, but no entry of Dict.* is an image"):
        make_observation_store(5, N_ENVS, spaces.Dict({"a": spaces.Discrete(3)}), single_frames=True)


def test_in_a_dict_every_entry_is_kept_in_its_own_way() -> None:
    """Demanded single frames are demanded of the images."""
    parts = streams((1, 6, 5), 0, 4)
    space = spaces.Dict({"image": parts[0].space, "speed": spaces.Box(-1, 1, (2,)), "room": spaces.Discrete(9)})
    store = make_observation_store(5, N_ENVS, space, single_frames=True)
    assert isinstance(store, DictStore)
    rng = np.random.default_rng(0)

    def observe(frames: np.ndarray) -> dict[str, Any]:
        return {"image": frames, "speed": rng.normal(size=(N_ENVS, 2)), "room": rng.integers(9, size=N_ENVS)}

    obs, next_obs = observe(np.stack([stream.reset() for stream in parts])), observe(slide(parts))
    add(store, 0, obs, next_obs)
    kinds = {key: type(part._store) for key, part in store._stores.items()}
    assert kinds == {"image": FrameStore, "speed": ArrayStore, "room": ArrayStore}
    for got, expected in zip(read(store, 0), (obs, next_obs), strict=True):
        assert got["image"].tobytes() == expected["image"].tobytes()
        np.testing.assert_array_equal(got["speed"], expected["speed"].astype(np.float32))
        np.testing.assert_array_equal(got["room"].ravel(), expected["room"])
    wrong = {**next_obs, "image": images(4, 6, 5)}
    before = pickle.dumps(store)
    with pytest.raises(ValueError, match=r"the observation\['image'\] of environment 0 is no sliding stack"):
        store.prepare(1, next_obs, wrong, ALL)
    assert pickle.dumps(store) == before


def test_observations_of_another_shape_are_refused() -> None:
    """Channels last has as many numbers as channels first, but is another image."""
    store = make_observation_store(5, N_ENVS, ATARI)
    with pytest.raises(ValueError, match=r"observation has the shape \(3, 84, 84, 4\): it must be \(3, 4, 84, 84\)"):
        store.prepare(0, images(84, 84, 4), images(84, 84, 4), ALL)


# -------------------------------------------------------------------------------------------------------------- memory


def test_bytes_of_an_atari_transition() -> None:
    """At most 7,200, and one frame for each truncated episode; stacks that begin blank, or repeat one, cost nothing."""
    rows, episode = 400, 50
    tracemalloc.start()
    try:
        store: Any = make_observation_store(rows, N_ENVS, ATARI)
        assert tracemalloc.get_traced_memory()[1] < 10_000
        rng = np.random.default_rng(0)
        obs = np.zeros((N_ENVS, 4, 84, 84), dtype=np.uint8)
        for step in range(2 * rows):
            new = step % episode == 0
            if new:
                obs = np.zeros_like(obs) if step % (2 * episode) else np.repeat(images(1, 84, 84), 4, axis=1)
                obs[:, -1] = images(84, 84, seed=step) if step % (2 * episode) else obs[:, 0]
            frame = rng.integers(0, 255, (N_ENVS, 1, 84, 84), dtype=np.uint8)
            next_obs = np.concatenate([obs[:, 1:], frame], axis=1)
            truncated = step % episode == episode - 1
            add(store, step, obs, next_obs, follows=NONE if new else ALL, uses_next=ALL)
            obs = images(4, 84, 84, seed=step) if truncated else next_obs
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    truncated_episodes = rows // episode * N_ENVS
    assert store.nbytes <= 7100 * rows * N_ENVS + 7056 * (truncated_episodes + 5 * N_ENVS)
    assert peak < 1.1 * store.nbytes + 2e6


def test_nothing_piles_up() -> None:
    """What is kept aside for starts and ends leaves with its steps."""
    parts = streams((1, 3, 3), 0, 4)
    store: Any = make_observation_store(10, N_ENVS, parts[0].space)
    sizes = []  # ten rows and four of history
    for step in range(300):
        add(store, step, np.stack([stream.reset() for stream in parts]), slide(parts))
        sizes.append((len(store._store._older_frames), len(store._store._last_frame)))
    assert max(older for older, _ in sizes) <= 14 * N_ENVS
    assert max(last for _, last in sizes) == 13 * N_ENVS


def test_bytes_of_compressed_frames() -> None:
    """What is counted is what there is, also after the ring has wrapped; the estimate is that of a full ring."""
    parts = streams((1, 20, 20), 0, 4)
    store: Any = make_observation_store(29, N_ENVS, parts[0].space, compress=True)
    full = []
    obs = np.stack([stream.reset() for stream in parts])
    for step in range(100):
        next_obs = slide(parts)
        add(store, step, obs, next_obs, follows=ALL if step else NONE)
        obs = next_obs
        full.append(store.full_nbytes)
    frames = store._store._frames
    assert frames.rows == 48  # 29 rows and 4 of history in groups of 8, and a group to spare
    codes = sum(len(code) + 57 for code in frames._codes.ravel())
    assert frames.nbytes == codes + N_ENVS * 8 * 400
    assert store.nbytes == frames.nbytes + 2 * 29 * N_ENVS + sum(
        part.nbytes for part in store._store._older_frames.values()
    )
    assert store.full_nbytes == pytest.approx(frames.nbytes + 2 * 29 * N_ENVS)
    assert full[0] < 0.5 * full[20]
    assert full[20] == pytest.approx(full[-1], rel=0.3)


def test_compression_that_has_no_effect_says_so() -> None:
    store = make_observation_store(5, N_ENVS, ATARI, compress=True)
    with pytest.warns(UserWarning, match="compress_frames=True is without effect: an observation is no sliding stack"):
        add(store, 0, images(4, 84, 84), images(4, 84, 84, seed=1))
    vectors = spaces.Dict({"speed": spaces.Box(-1, 1, (4,))})
    with pytest.warns(UserWarning, match=r"compress_frames=True is without effect: no entry of Dict.* is an image"):
        make_observation_store(5, N_ENVS, vectors, compress=True)


def test_a_first_step_that_is_a_last_one_proves_nothing() -> None:
    """Its next observation will not be used, and so cannot contradict any layout: frames must not be believed in."""
    store: Any = make_observation_store(5, N_ENVS, ATARI)
    add(store, 0, images(4, 84, 84), images(4, 84, 84, seed=1), uses_next=NONE)
    assert isinstance(store._store, ArrayStore)


def test_still_floats_are_handed_out_as_arrays_of_their_own() -> None:
    """Networks work on floats as they are, and may do so in place."""
    parts = streams((1, 6, 5), 0, 4, np.float32)
    store: Any = make_observation_store(5, N_ENVS, parts[0].space)
    add(store, 0, np.stack([stream.reset() for stream in parts]), slide(parts))
    obs, next_obs = read(store, 0)
    assert isinstance(store._store, FrameStore)
    assert not np.shares_memory(obs, next_obs)
    assert obs.flags.c_contiguous
    assert next_obs.flags.c_contiguous
