"""Reads data sets through Hugging Face `datasets`, without waiting for a hub that cannot be reached."""

import contextlib
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nmt.errors import UserError

logger = logging.getLogger(__name__)
_PATIENCE = 5.0


def read_hub(
    name: str,
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    place: Path | None = None,
    streaming: bool = False,
) -> Iterable[Mapping[str, Any]]:
    """Opens a split of a data set on the hub, in the hub's local cache, or in a local folder.

    Args:
        name: the data set's name ("owner/name") or a folder with its files.
        split: the data set's own name for the split.
        config: its configuration, for data sets with several.
        revision: commit or tag on the hub.
        place: the folder where the user may put a copy, for the message.
        streaming: whether records come from where they are, instead of from a copy in the local cache.

    Returns:
        The records, in order.

    Raises:
        UserError: hub unreachable and nothing in the cache; no such data set, configuration or split.
    """
    import datasets
    from huggingface_hub import constants

    local = Path(name).is_dir()
    offline = not local and (bool(constants.HF_HUB_OFFLINE) or not _reachable(constants.ENDPOINT))
    try:
        with _quiet(offline):
            rows = datasets.load_dataset(
                name,
                config,
                split=split,
                revision=None if local else revision,
                # The local cache holds what was downloaded as a whole.
                streaming=streaming and not offline,
            )
    except Exception as error:
        # The library raises a dozen kinds of exception here; every one comes from outside of our code.
        if offline:
            raise UserError(
                f"The data set {name!r} is not in the local cache, and the Hugging Face hub cannot be "
                "reached (HF_HUB_OFFLINE is set or there is no connection). Connect once, or put a copy of the data "
                f"set into {place or 'a folder and give its path'}, or the files named under `splits` in the card into "
                "the corpus folder, or use --corpus reverse, which needs nothing."
            ) from None
        raise _unreadable(name, config, split, error) from error
    return _streamed(rows, lambda error: _unreadable(name, config, split, error)) if streaming else rows


def _streamed(rows: Iterable[Mapping[str, Any]], explain: Callable[[Exception], UserError]) -> Iterator[Any]:
    """Records that are read on the way, and so may turn out to be unreadable there."""
    rest = iter(rows)
    while True:
        try:
            row = next(rest)
        except StopIteration:
            return
        except Exception as error:
            raise explain(error) from error
        yield row


def _unreadable(name: str, config: str | None, split: str, error: Exception) -> UserError:
    reason = " ".join(str(error.__cause__ or error).split())
    return UserError(f"The data set {name!r} (config {config!r}, split {split!r}) cannot be read: {reason[:300]}")


def _reachable(endpoint: str) -> bool:
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        logger.info("The Hugging Face hub does not answer; looking in its local cache")
        return False


@contextlib.contextmanager
def _quiet(offline: bool) -> Iterator[None]:
    """Without progress bars; in offline mode, else each missing file would cost 23 s of retries."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        if not bars:
            datasets.enable_progress_bars()
