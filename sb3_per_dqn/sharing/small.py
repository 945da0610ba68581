"""The small form of a model folder, a quarter of its size: weights in half precision, one network instead of two."""

import io
import os

import torch as th

from sb3_per_dqn.sharing.plain import ModelFolderError

ONLINE, TARGET = "q_net.", "q_net_target."  # which begin the names of the two networks' weights
MOST_PICTURE = 2**16  # bytes
WIDTHS, COLOURS = (1500, 1200, 900, 600, 300), 64  # tried in turn, in pixels

Tensors = dict[str, th.Tensor]
Forms = dict[str, tuple[tuple[int, ...], th.dtype]]  # shape and dtype by name


def smaller(weights: Tensors) -> Tensors:
    """
    :param weights: of a policy, finite
    :return: these without the target network's, and float16 where they are floating point
    :raises ModelFolderError: if one is beyond the range of float16
    """
    online = {name: value for name, value in weights.items() if not name.startswith(TARGET)}
    small = {name: value.half() if value.is_floating_point() else value for name, value in online.items()}
    for name, value in small.items():
        if not th.isfinite(value).all():
            raise ModelFolderError(f"small: {name} is not finite in float16, which ends at 65504: leave small out.")
    return small


def small_forms(forms: Forms) -> Forms:
    """
    :param forms: of a policy's weights
    :return: of what :func:`smaller` makes of them
    """
    return {
        name: (shape, th.float16 if dtype.is_floating_point else dtype)
        for name, (shape, dtype) in forms.items()
        if not name.startswith(TARGET)
    }


def completed(weights: Tensors) -> Tensors:
    """
    :param weights: from :func:`smaller`
    :return: these, and for the target network the same as for the online one
    """
    return weights | {
        TARGET + name.removeprefix(ONLINE): value for name, value in weights.items() if name.startswith(ONLINE)
    }


def round_weights(policy: th.nn.Module) -> None:
    """
    Make a policy what comes back from a small folder, so that what is scored is what is shared.

    :param policy: of a model
    :raises ModelFolderError: if a weight is beyond the range of float16; the policy stays as it was then
    """
    policy.load_state_dict(completed(smaller(policy.state_dict())))


def smaller_picture(path: str | os.PathLike[str]) -> bytes:
    """
    :param path: of a picture
    :return: the same as a PNG of few colours, and of less width if it takes that to have ``MOST_PICTURE`` bytes
    :raises ModelFolderError: if it is no picture
    """
    from PIL import Image  # not at the top: whoever loads a model needs no pictures

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except OSError as error:
        raise ModelFolderError(f"curve={str(path)!r} is no picture: {error}.") from None
    for width in WIDTHS:
        narrow = picture.copy()
        narrow.thumbnail((width, width))
        data = io.BytesIO()
        narrow.quantize(COLOURS).save(data, "PNG", optimize=True)
        if data.tell() <= MOST_PICTURE:
            break
    return data.getvalue()
