"""A model that is open for reading, whatever it was stored as."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ggufsmith.container.shards import GgufSet
from ggufsmith.naming.filename import FileName


@dataclass(frozen=True)
class OpenedModel:
    """An opened model.

    name:             the components of its file name.
    assumed:          keys that the file does not state -> a sentence.
    vocabulary_notes: what is wanting in its vocabulary. notes: what else there is to say.
    """

    files: GgufSet
    name: FileName
    assumed: Mapping[str, str] = field(default_factory=dict)
    vocabulary_notes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def told(self, known: Iterable[str] = ()) -> tuple[str, ...]:
        """All sentences for the report; without those on keys that the user has set."""
        left = {key: text for key, text in self.assumed.items() if key not in set(known)}
        return (*self.notes, *self.vocabulary_notes, *(f"{key}: {text}" for key, text in left.items()))
