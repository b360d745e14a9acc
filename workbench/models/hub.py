"""Where a checkpoint lies and what its files say, for any model family; errors a person can act on."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import transformers.utils.logging as hf_logging
from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers.utils import cached_file

from workbench.models.preprocess import RESAMPLES, Preprocessing

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PACKAGED = ("nano",)
_ANSWER_SECONDS = 10.0
# OSError, and the base of all errors of the client that this version of the hub's library uses (httpx, httpx2).
_NO_ANSWER: tuple[type[Exception], ...] = tuple(b for b in HfHubHTTPError.__bases__ if issubclass(b, Exception))
PREPROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


def locate(source: str) -> str:
    """The folder or hub id to hand to transformers."""
    accepted = f"accepted are {', '.join(map(repr, PACKAGED))}, a local folder with config.json, or a hub id owner/name"
    if source in PACKAGED:
        folder = CHECKPOINTS / source
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"the packaged checkpoint {source!r} is not in this installation ({folder})")
        return str(folder)
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise FileNotFoundError(f"folder {source!r} has no config.json, so it is no checkpoint; {accepted}")
        return source
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        raise FileNotFoundError(f"no backbone {source!r}: it is no folder and no name known here; {accepted}")
    _check_network(source)
    return source


def _check_network(source: str) -> None:
    """Ask the hub once, without retrying, for what is in no cache. Raises OSError where there is no way to it.

    Without this the library tries six times over half a minute, telling of each, before it says the same. Any answer
    of the hub's will do, "not found" too: the library puts that into words.
    """
    if is_offline_mode() or isinstance(try_to_load_from_cache(source, "config.json"), str):
        return
    url = hf_hub_url(source, "config.json")
    with readable_errors(source):
        try:
            get_hf_file_metadata(url, timeout=_ANSWER_SECONDS)
        except HfHubHTTPError:
            return
        except _NO_ANSWER as error:
            raise OSError(f"no connection to {urlsplit(url).netloc} ({error})") from error


def read_preprocessing(source: str, location: str, *, default: Preprocessing | None = None) -> Preprocessing:
    """What the checkpoint's own file says should be done to frames. Raises FileNotFoundError where it has no such file
    and there is no ``default``, ValueError where the file lacks or asks for something."""
    for name in PREPROCESSOR_FILES:
        with readable_errors(source):
            found = cached_file(
                location, name,
                _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
            )  # fmt: skip
        if found:
            break
    else:
        if default is not None:
            return default
        raise FileNotFoundError(
            f"{source} has no {' or '.join(PREPROCESSOR_FILES)}, so its mean and standard deviation are unknown; "
            "put the file beside config.json (keys image_mean, image_std)"
        )
    try:
        return Preprocessing.from_record(json.loads(Path(found).read_text(encoding="utf-8")))
    except ValueError as error:  # a JSON error is one too
        raise ValueError(f"{found}: {error}") from error


def preprocessing_record(steps: Preprocessing) -> dict[str, Any]:
    """The content of a ``preprocessor_config.json`` that :meth:`Preprocessing.from_record` reads back to ``steps``."""
    record: dict[str, Any] = {
        "do_rescale": True, "rescale_factor": steps.scale, "offset": False,
        "do_normalize": True, "image_mean": list(steps.mean), "image_std": list(steps.std),
        "resample": next(number for number, name in RESAMPLES.items() if name == steps.resample),
        "do_resize": steps.resize is not None, "do_center_crop": steps.crop is not None,
    }  # fmt: skip
    if steps.resize is not None:
        record["size"] = _sides(steps.resize) if isinstance(steps.resize, tuple) else {"shortest_edge": steps.resize}
    if steps.crop is not None:
        record["crop_size"] = _sides(steps.crop if isinstance(steps.crop, tuple) else (steps.crop, steps.crop))
    return record


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


@contextmanager
def readable_errors(source: str) -> Iterator[None]:
    """Turn the library's page-long error into a short OSError; the original stays attached as the cause."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        where = "folder" if Path(source).is_dir() else "hub id (this needs a network; no such local folder exists)"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"cannot load backbone {source!r} as a {where}: {first.rstrip('.')}. "
            "Accepted are 'nano', a local folder with config.json and model.safetensors, or a hub id owner/name"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report about the classifier that we drop; what matters is logged here."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
