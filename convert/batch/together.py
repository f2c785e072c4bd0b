"""Keys of a job file that mean nothing without others, or that do not go together."""

from collections.abc import Iterator, Mapping
from typing import Any

from ggufsmith.convert.batch.settings import Said, unknown
from ggufsmith.convert.hub.names import HUGGING_FACE, ID
from ggufsmith.pipeline.request import AUTO
from ggufsmith.quantize.resolve import EFFORTS

BUDGETS = ("target_size", "target_bpw", "match")  # the keys that ask for outputs whose types are chosen
QUANTIZING = ("recipes", *BUDGETS)
# Key -> what it needs, and why that is missing if it is.
NEEDS: Mapping[str, tuple[str, str]] = {
    "include_weights": ("imatrix", "chooses entries of an importance matrix, but there is no imatrix"),
    "exclude_weights": ("imatrix", "chooses entries of an importance matrix, but there is no imatrix"),
    "quality": ("card", "puts a table into the model card, but there is no card"),
    "calibrate_chunks": ("calibrate", "is about calibrating, but there is no calibrate"),
    "effort": ("calibrate", "is about calibrating, but there is no calibrate"),
    "device": ("calibrate", "is about calibrating, but there is no calibrate"),
    "card_template": ("card", "makes the model card, but there is no card"),
    "create": ("push", "is about publishing, but there is no push"),
    "private": ("push", "is about publishing, but there is no push"),
    "replace": ("push", "is about publishing, but there is no push"),
}
ABOUT_AUTO = {"keep_imatrix": "keeps what", "imatrix_chunks": "is about what"}
REPOSITORIES = ("push", "repo", "base_model")  # keys that name one on the hub
# What does not go with `calibrate`, and why.
NOT_CALIBRATED = {
    "imatrix": "which makes an importance matrix of its own",
    "prune_layers": "which runs the whole model",
}


def misfits(said: Mapping[str, Said], place: str) -> Iterator[tuple[Any, ...]]:
    """(place, what is wrong, perhaps the next step), of everything that does not fit together.

    place: of the model, which is that of what nobody has set. What one model has set to nothing, such as `push = ""`,
    may leave without a meaning what all models have in common.
    """
    for key, (needed, why) in NEEDS.items():
        if said[key].value and not said[needed].value and said[needed].place == place:
            yield said[key].place, f"{key} {why}"
    for key in REPOSITORIES:
        name = said[key].value.removeprefix(f"{HUGGING_FACE}://") if key == "push" else said[key].value
        if name and not ID.fullmatch(name):
            yield said[key].place, f"{name!r:.100} is not the name of a repository", "Write ORGANIZATION/NAME."
    effort, calibrate = said["effort"], said["calibrate"]
    if effort.value and effort.value not in EFFORTS:
        yield effort.place, *unknown("effort", effort.value, EFFORTS)
    if calibrate.value:
        for key, why in NOT_CALIBRATED.items():
            if said[key].value:
                yield said[key].place, f"{key} cannot be combined with calibrate, {why}"
        if not any(said[key].value for key in QUANTIZING):
            yield calibrate.place, f"calibrate is about quantizing: set at least one of {', '.join(QUANTIZING)}"
    if said["imatrix"].value != str(AUTO):
        for key, what in ABOUT_AUTO.items():
            if said[key].value and (key == "keep_imatrix" or said["imatrix"].place == place):
                yield said[key].place, f'{key} {what} imatrix = "{AUTO}" makes'
