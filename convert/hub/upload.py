"""Files onto the Hugging Face hub, through huggingface_hub: large ones first and each by itself, then one commit.

Nothing is visible before the commit, and nothing is ever deleted. What is there already, by its hash, is not sent
again, so that an interrupted upload goes on where it stopped. A busy hub is asked again, as late as it wants.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, constants, errors
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it lacks an __all__

from ggufsmith.container.errors import Failure, OutputConflict, Usage
from ggufsmith.convert.hub.http import BUSY, retry_after
from ggufsmith.convert.hub.huggingface import HttpError, HuggingFace
from ggufsmith.convert.hub.listing import Listing
from ggufsmith.convert.hub.names import HUGGING_FACE, ID, HubModel

ATTEMPTS = 4
LONGEST_WAIT = 300.0  # seconds that a busy hub may ask us to wait
LOGIN = "Log in with `hf auth login`, set HF_TOKEN, or pass --token; the token must be allowed to write."
Result = TypeVar("Result")


@dataclass(frozen=True)
class UploadFile:
    """One file. place: its name in the repository, with slashes. content: its path, or its bytes.

    sha256: of a path, if it is known. renews: it may take the place of another version.
    """

    place: str
    content: Path | bytes
    sha256: str | None = None
    renews: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Uploaded:
    """What an upload did. url: of the commit; None if everything was there. sent, there: places of files."""

    url: str | None
    sent: tuple[str, ...]
    there: tuple[str, ...]


class Repository:
    """A repository on the hub that files are put into.

    Usage for a name that is none, under HF_HUB_OFFLINE, and without a token. create: make it if it is missing; private:
    so that only its owners see it. replace: files that are there with other content may get a new version.
    """

    def __init__(
        self,
        name: str,
        token: str | None = None,
        *,
        create: bool = False,
        private: bool = False,
        replace: bool = False,
        endpoint: str | None = None,
        pause: float = 1.0,
    ) -> None:
        name = name.removeprefix("hf://")
        if not ID.fullmatch(name):
            raise Usage(f"{name!r:.100} is not the name of a repository", fix="Write ORGANIZATION/NAME.")
        self.model = HubModel(HUGGING_FACE, name)
        if constants.HF_HUB_OFFLINE:
            raise Usage("nothing can be published while HF_HUB_OFFLINE is set", where=self.model, fix="Unset it.")
        self._token = token or huggingface_hub.get_token()
        if not self._token:
            raise Usage("there is no token to publish with", where=self.model, fix=LOGIN)
        self._create, self._private, self._replace = create or private, private, replace
        self._pause = pause
        self._endpoint = endpoint or constants.ENDPOINT
        self._hub = HuggingFace(self._token, endpoint=self._endpoint, pause=pause)
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint, token=self._token)
        disable_progress_bars()

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self._endpoint}/{self.model.id}"

    def listing(self) -> Listing | None:
        """What is there; None if there is no such repository, or it is not shown to this token.

        Failure if the hub cannot be reached: what the cache knows of a repository does not count here.
        """
        try:
            found = self._hub.listing(self.model)
        except Usage as error:
            if isinstance(error.__cause__, errors.RepositoryNotFoundError):
                return None
            raise
        if found.unreachable:
            raise found.unreachable
        return found

    def check(self, places: Sequence[str] = ()) -> Listing | None:
        """What is there, before the work; None if the repository will be made.

        Usage if it is missing and may not be made. OutputConflict for places that are taken and may not be replaced;
        whether their content is another one is not asked.
        """
        found = self.listing()
        if found is None and not self._create:
            fix = "Check the name, or add --create, which makes the repository, or --private."
            raise Usage("the hub has no such repository, or does not show it to you", where=self.model, fix=fix)
        taken = [place for place in places if found is not None and place in found.files]
        if taken and not self._replace:
            raise self._taken(taken)
        return found

    def upload(
        self,
        files: Sequence[UploadFile],
        message: str,
        *,
        advance: Callable[[int], None] = lambda size: None,
    ) -> Uploaded:
        """Send what is not there, and commit all of it at once. advance: told of bytes as files are done.

        OutputConflict for files with other content, unless they may be replaced. Failure if the hub refuses, or cannot
        be reached; then nothing of it is visible.
        """
        found = self.check()
        known = found.files if found is not None else {}
        there = [file for file in files if file.place in known and self._same(file, known[file.place])]
        changed = [file.place for file in files if file.place in known and file not in there and not file.renews]
        if changed and not self._replace:
            raise self._taken(changed)
        for file in there:
            advance(file.size)
        new = [file for file in files if file not in there]
        if not new:
            return Uploaded(None, (), tuple(file.place for file in there))
        if found is None:
            make = self._api.create_repo
            self._patiently(lambda: make(self.model.id, private=self._private or None, exist_ok=True))
        additions = []
        for file in new:
            addition = CommitOperationAdd(
                file.place, str(file.content) if isinstance(file.content, Path) else file.content
            )
            send = partial(self._api.preupload_lfs_files, self.model.id, [addition], free_memory=False)
            self._patiently(send)
            additions.append(addition)
            advance(file.size)
        done = self._patiently(lambda: self._api.create_commit(self.model.id, additions, commit_message=message))
        return Uploaded(done.commit_url, tuple(file.place for file in new), tuple(file.place for file in there))

    def read(self, listing: Listing, place: str) -> str:
        """The text of a small file that is there."""
        self._hub.fetch(listing, listing.files[place], lambda size: None)
        return (self._hub.folder(listing) / place).read_text(encoding="utf-8", errors="replace")

    def _same(self, file: UploadFile, there: Any) -> bool:
        if file.size != there.size:
            return False
        if isinstance(file.content, bytes):
            import hashlib

            start = b"blob %d\0" % file.size
            small = hashlib.sha1(start + file.content, usedforsecurity=False).hexdigest()
            return bool(there.git_id == small or there.sha256 == hashlib.sha256(file.content).hexdigest())
        if file.sha256 is not None and there.sha256 is not None:
            return bool(file.sha256 == there.sha256)
        return bool((there.sha256 or there.git_id) and there.matches(file.content))

    def _taken(self, places: Sequence[str]) -> OutputConflict:
        return OutputConflict(
            "the repository has files of these names with other content",
            where=self.model,
            also=places[:20],
            fix="Choose another repository, or add --replace, which adds new versions of them.",
        )

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """The result of a call; a busy or failing hub is asked again."""
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except (OSError, HttpError, RuntimeError, ValueError) as error:
                wait = self._wait(error, attempt)
                if wait is None or attempt == ATTEMPTS - 1:
                    raise self._explained(error) from None
                time.sleep(wait)
        raise AssertionError("the last attempt raises or returns")

    def _wait(self, error: BaseException, attempt: int) -> float | None:
        """Seconds until it is worth asking again; None if it is not."""
        root, default = _root(error), self._pause * 2.0**attempt
        status, response = _status(root), getattr(root, "response", None)
        if status is not None:
            said = None if response is None else response.headers.get("Retry-After")
            wait = retry_after(said, default)
            return wait if status in BUSY and wait <= LONGEST_WAIT else None
        return default if isinstance(root, HttpError | ConnectionError) else None

    def _explained(self, error: BaseException) -> Failure:
        """What huggingface_hub raised, as one of ours, without the token."""
        root = _root(error)
        status = _status(root)
        if isinstance(root, errors.RepositoryNotFoundError) or status == 404:
            fix = f"Check the name of the repository. {LOGIN}"
            return Usage("the hub has no such repository, or does not show it to you", where=self.model, fix=fix)
        if status in (401, 403):
            return Failure(f"the hub refuses to take the files ({status})", where=self.model, fix=LOGIN)
        if status == 429:
            fix = "Try later; what was sent is not sent again."
            return Failure("the hub's request limit is reached (429)", where=self.model, fix=fix)
        said = (str(root) or type(root).__name__).partition("\n")[0].replace(str(self._token), "***")
        again = "Run the same command again; what was sent is not sent again."
        if status is not None:
            return Failure(f"the hub answered with an error ({status}): {said}", where=self.model, fix=again)
        return Failure(f"the upload failed: {said}", where=self.model, fix=again)


def _status(error: BaseException) -> int | None:
    """The status of the answer, which hf_xet has in its text only."""
    response = getattr(error, "response", None)
    said = re.search(r"HTTP status \w+ error \((\d{3}) ", str(error)) if response is None else None
    return int(said[1]) if said else getattr(response, "status_code", None)


def _root(error: BaseException) -> BaseException:
    """What happened first, of what huggingface_hub wraps."""
    with suppress(AttributeError):
        while isinstance(error, RuntimeError) and error.__cause__ is not None:
            error = error.__cause__
    return error
