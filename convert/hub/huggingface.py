"""The Hugging Face hub, through huggingface_hub: its cache, its tokens, its settings (HF_ENDPOINT, HF_HOME, …)."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it lacks an __all__

from ggufsmith.container.disk import make_folder
from ggufsmith.container.errors import Failure, Malformed, NoSpace, Usage
from ggufsmith.container.replace import replace_text
from ggufsmith.container.writer import FULL
from ggufsmith.convert.hub.http import BUSY, retry_after
from ggufsmith.convert.hub.listing import WRONG_ANSWER, Advance, HubFile, Listing
from ggufsmith.convert.hub.names import PAGES, HubModel, stays_inside

TIMEOUT = 20.0  # seconds until the hub answers
ATTEMPTS = 4
BROKEN = ("RemoteProtocolError", "ReadError")  # of httpx: the connection ended in the middle of an answer
MAX_COMMIT = 256  # characters
LONGEST_WAIT = 300  # seconds that a busy hub may ask us to wait
# Of httpx, or of httpx2 with later versions of huggingface_hub.
HttpError = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
Result = TypeVar("Result")


class HuggingFace:
    """See `listing.Hub`. token: None takes HF_TOKEN or the stored login. pause: seconds before the second attempt."""

    def __init__(
        self, token: str | None = None, *, endpoint: str | None = None, cache: Path | None = None, pause: float = 1.0
    ) -> None:
        self._pause = pause
        self._endpoint = endpoint or constants.ENDPOINT
        self._cache = cache or Path(constants.HF_HUB_CACHE)
        self._token = token
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint, token=token)
        huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

    def listing(self, model: HubModel) -> Listing:
        """See `Hub.listing`."""
        ask = partial(self._api.model_info, revision=model.revision, files_metadata=True, timeout=TIMEOUT)
        try:
            info = self._patiently(model, lambda: ask(model.id))
            files = {
                file.rfilename: HubFile(
                    file.rfilename,
                    file.size or 0,
                    file.lfs.sha256 if file.lfs else None,
                    None if file.lfs else file.blob_id,
                )
                for file in cast("Iterable[Any]", info.siblings)
            }
        except Unreachable as error:
            return self._cached(model, error)
        except (AttributeError, LookupError, RecursionError, TypeError) as error:  # huggingface_hub checks nothing
            raise Malformed("the hub's answer does not describe a model", where=model, fix=WRONG_ANSWER) from error
        return Listing(model, cast(str, info.sha), files)

    def folder(self, listing: Listing) -> Path:
        """See `Hub.folder`."""
        return self._home(listing.model) / "snapshots" / listing.commit

    def fetch(self, listing: Listing, file: HubFile, advance: Advance) -> None:
        """See `Hub.fetch`."""
        get = partial(
            huggingface_hub.hf_hub_download,
            revision=listing.commit,
            cache_dir=self._cache,
            endpoint=self._endpoint,
            token=self._token,
            tqdm_class=_bar(advance),
        )
        self._patiently(listing.model, lambda: get(listing.model.id, file.name))
        self._remember(listing)

    def discard(self, listing: Listing, file: HubFile) -> None:
        """See `Hub.discard`."""
        path = self.folder(listing) / file.name
        path.resolve().unlink(missing_ok=True)  # the blob
        path.unlink(missing_ok=True)

    def address(self, listing: Listing, file: HubFile) -> tuple[str, Mapping[str, str]]:
        """See `Hub.address`."""
        url = huggingface_hub.hf_hub_url(listing.model.id, file.name, revision=listing.commit, endpoint=self._endpoint)
        return url, build_hf_headers(token=self._token)

    def _home(self, model: HubModel) -> Path:
        return self._cache / f"models--{model.id.replace('/', '--')}"

    def _remember(self, listing: Listing) -> None:
        """Note in the cache which commit the revision is, for when the hub cannot be reached."""
        reference = self._reference(listing.model)
        if reference.name != listing.commit and _noted(reference) != listing.commit:
            make_folder(reference.parent)
            replace_text(reference, listing.commit)

    def _reference(self, model: HubModel) -> Path:
        """Where the cache notes the commit of the model's revision."""
        return self._home(model) / "refs" / (model.revision or constants.DEFAULT_REVISION)

    def _cached(self, model: HubModel, error: "Unreachable") -> Listing:
        """What the cache has of this revision. Raises the error if that is nothing."""
        commit = _noted(self._reference(model)) or model.revision or constants.DEFAULT_REVISION
        folder = self._home(model) / "snapshots" / commit
        if not stays_inside(commit) or not os.path.isdir(folder):  # False as well for names that are too long
            raise error
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return Listing(model, commit, {name: HubFile(name, (folder / name).stat().st_size) for name in names}, error)

    def _patiently(self, model: HubModel, call: Callable[[], Result]) -> Result:
        """The result of a call; a busy or failing hub is asked again, as late as it wants."""
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except (OSError, HttpError, errors.EntryNotFoundError, ValueError) as error:
                wait = _wait(error, self._pause * 2.0**attempt)
                if wait is None or attempt == ATTEMPTS - 1:
                    raise _explained(error, model) from error
                time.sleep(wait)
        raise AssertionError("the last attempt raises or returns")


def _noted(reference: Path) -> str | None:
    """The commit that the cache notes there, as far as there is one."""
    try:
        with reference.open(encoding="ascii") as file:
            return file.read(MAX_COMMIT).strip() or None
    except (OSError, ValueError):
        return None


class Unreachable(Failure):
    """The hub does not answer; what the cache has may do."""


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _root(error: BaseException) -> BaseException:
    """What huggingface_hub found before it looked into its cache in vain."""
    return error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error


def _wait(error: BaseException, default: float) -> float | None:
    """Seconds until it is worth asking again; None if it is not."""
    error = _root(error)
    if _status(error) in BUSY:
        wait = retry_after(getattr(error, "response").headers.get("Retry-After"), default)  # noqa: B009
        return wait if wait <= LONGEST_WAIT else None
    cut = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return default if cut or type(error).__name__ in BROKEN else None


def _explained(error: BaseException, model: HubModel) -> Failure:
    """What huggingface_hub raised, as one of ours."""
    error, page = _root(error), PAGES[model.hub] + model.id
    login = "log in with `hf auth login`, set HF_TOKEN, or pass --token"
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        fix = f"Accept its conditions on {page}, then {login}."
        return Failure("the model is gated, and this access is not granted", where=model, fix=fix)
    if isinstance(error, errors.RevisionNotFoundError):
        return Usage(f"the model has no revision {model.revision!r}", where=model, fix=f"See {page}/tree/main.")
    if isinstance(error, errors.RepositoryNotFoundError):
        fix = f"Check the name on {page}; for a private model, {login}."
        return Usage("the hub has no such model, or does not show it to you", where=model, fix=fix)
    if status in (401, 403):
        return Failure(f"the hub refuses the access ({status})", where=model, fix=f"Check the token: {login}.")
    if status == 429:
        return Failure("the hub's request limit is reached (429)", where=model, fix=f"Try later, or {login}.")
    if status is not None:
        return Failure(f"the hub answered with an error ({status})", where=model, fix="Try again later.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        fix = "Unset it, or download the model on a machine with network access."
        return Unreachable("HF_HUB_OFFLINE is set, and the cache does not have this model", where=model, fix=fix)
    if isinstance(error, HttpError):
        what = f"the hub cannot be reached: {str(error) or type(error).__name__}"
        return Unreachable(what, where=model, fix="Check the network, and HF_ENDPOINT if it is set.")
    if isinstance(error, OSError) and error.errno in FULL:
        return NoSpace(
            f"the cache has no space left: {error.strerror}", where=model, fix="Free some space, or set HF_HOME."
        )
    return Failure(f"the download failed: {str(error).partition(chr(10))[0]}", where=model, fix="Try again.")


def _bar(advance: Advance) -> type[Any]:
    """What huggingface_hub takes for a progress bar: all it does is to tell `advance`."""

    class Bar:
        n = 0
        total = None

        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...
        def update(self, size: float = 1) -> None:
            advance(int(size))

        def update_transfer(self, size: float = 1) -> None:
            """Bytes on the wire; `update` counts those of the file."""

        def ignore(self, *_: object, **__: object) -> None: ...

        set_postfix_str = set_transfer_postfix_str = set_description = refresh = close = ignore

    return Bar
