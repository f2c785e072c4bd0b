"""ModelScope, through modelscope_hub: its cache, its token (MODELSCOPE_API_TOKEN, the stored login), its endpoint.

ModelScope has no commits that a download could be pinned to: the hash of every file says whether it is the right one.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.convert.hub.listing import Advance, HubFile, Listing
from ggufsmith.convert.hub.names import PAGES, HubModel

DEFAULT_REVISION = "master"


class ModelScope:
    """See `listing.Hub`. token: None takes MODELSCOPE_API_TOKEN or the stored login."""

    def __init__(self, token: str | None = None, *, endpoint: str | None = None, cache: Path | None = None) -> None:
        try:
            import modelscope_hub
        except ImportError:
            raise Unsupported(
                "models on ModelScope need modelscope_hub, which is not installed",
                fix="pip install 'ggufsmith[modelscope]'",
            ) from None
        from modelscope_hub.config import get_default_config

        self._errors: Any = modelscope_hub.errors
        self._api: Any = modelscope_hub.HubApi(token=token, endpoint=endpoint)
        self._cache = cache or Path(get_default_config().cache_dir)
        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)

    def listing(self, model: HubModel) -> Listing:
        """See `Hub.listing`."""
        revision = model.revision or DEFAULT_REVISION
        try:
            found = self._api.list_repo_files(model.id, "model", revision=revision)
        except Exception as error:
            raise self._explained(error, model) from error
        files = {file.path: HubFile(file.path, file.size, file.sha256 or None) for file in found if not file.is_dir}
        return Listing(model, revision, files)

    def folder(self, listing: Listing) -> Path:
        """See `Hub.folder`."""
        return self._cache / "models" / listing.model.id.replace("/", "--") / "snapshots" / listing.commit

    def fetch(self, listing: Listing, file: HubFile, advance: Advance) -> None:
        """See `Hub.fetch`."""
        try:
            self._api.downloader.download_file(
                listing.model.id,
                "model",
                file.name,
                revision=listing.commit,
                local_dir=self.folder(listing),
                expected_sha256=file.sha256,
                file_size=file.size,
                progress_callbacks=[_callback(advance)],
            )
        except self._errors.FileIntegrityError as error:
            raise Malformed(
                "the downloaded file did not match the hub's size and hash, several times in a row",
                where=f"{listing.model}: {file.name}",
                fix="Try again later.",
            ) from error
        except (self._errors.HubError, OSError) as error:
            raise self._explained(error, listing.model) from error

    def discard(self, listing: Listing, file: HubFile) -> None:
        """See `Hub.discard`."""
        (self.folder(listing) / file.name).unlink(missing_ok=True)

    def address(self, listing: Listing, file: HubFile) -> tuple[str, Mapping[str, str]]:
        """See `Hub.address`."""
        url = self._api.legacy.get_download_url(listing.model.id, "model", file.name, revision=listing.commit)
        token = self._api.legacy.token
        return url, {"Authorization": f"Bearer {token}"} if token else {}

    def _explained(self, error: Exception, model: HubModel) -> Failure:
        page = PAGES[model.hub] + model.id
        if isinstance(error, self._errors.NotExistError):
            fix = f"Check the name and the revision on {page}."
            return Usage("the hub has no such model or revision, or does not show it to you", where=model, fix=fix)
        if isinstance(error, self._errors.AuthenticationError | self._errors.PermissionDeniedError):
            fix = "Set MODELSCOPE_API_TOKEN, or pass --token."
            return Failure("the hub refuses the access", where=model, fix=fix)
        if isinstance(error, self._errors.RateLimitError):
            return Failure("the hub's request limit is reached", where=model, fix="Try again later.")
        what = str(error).partition("\n")[0] or type(error).__name__
        return Failure(f"the hub cannot be read: {what}", where=model, fix="Check the network; try again later.")


def _callback(advance: Advance) -> type[Any]:
    """What modelscope_hub tells of its progress."""

    class Callback:
        def __init__(self, filename: str, file_size: int) -> None: ...
        def update(self, size: int) -> None:
            advance(size)

        def end(self) -> None: ...

    return Callback
