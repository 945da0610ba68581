"""What prioritized replay cannot be made with, found before anything is stored."""

import math
from numbers import Integral
from typing import Any

import numpy as np

NORMALIZATIONS = "memory", "batch"  # whose largest weight counts as 1


def check_priority_arguments(alpha: float, eps: float, normalize_weights: str, prefix: str = "") -> None:
    """
    :param alpha: exponent of the priorities
    :param eps: added to the absolute TD errors
    :param normalize_weights: by the largest of what
    :param prefix: before the names, in messages
    :raises ValueError: if alpha is outside [0, 1], eps not above 0 and finite, or ``normalize_weights`` unknown
    """
    if not _is_number(alpha) or not 0.0 <= alpha <= 1.0:
        raise ValueError(f"{prefix}alpha={alpha!r} must be a number in [0, 1]; 0 draws uniformly.")
    if not _is_number(eps) or not 0.0 < eps < math.inf:
        raise ValueError(f"{prefix}eps={eps!r} must be a finite number above 0, so that every transition can be drawn.")
    if normalize_weights not in NORMALIZATIONS:
        raise ValueError(f"{prefix}normalize_weights={normalize_weights!r} must be {' or '.join(NORMALIZATIONS)}.")


def check_n_step_arguments(n_steps: int, gamma: float) -> None:
    """
    :param n_steps: rewards to sum
    :param gamma: their discount factor
    :raises ValueError: if n_steps is not a whole number from 1 on, or gamma outside [0, 1]
    """
    if not isinstance(n_steps, Integral) or n_steps < 1:
        raise ValueError(f"n_steps={n_steps!r} must be a whole number, 1 or more.")
    if not _is_number(gamma) or not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma={gamma!r} must be a number in [0, 1].")


def check_frame_arguments(single_frames: bool | None, compress_frames: bool) -> None:
    """
    :param single_frames: whether single frames are demanded
    :param compress_frames: whether to compress them
    :raises ValueError: if one is of another type, or they contradict each other
    """
    if single_frames is not None and not isinstance(single_frames, bool):
        raise ValueError(f"single_frames={single_frames!r} must be True, False or None.")
    if not isinstance(compress_frames, bool):
        raise ValueError(f"compress_frames={compress_frames!r} must be True or False.")
    if compress_frames and single_frames is False:
        raise ValueError("compress_frames=True compresses single frames, which single_frames=False forbids: drop one.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
