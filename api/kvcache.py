"""What the cache of keys and values takes beside the weights, as llama.cpp allocates it for one sequence.

Sources: llama.cpp's src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-kv-cache-dsa.cpp, llama-kv-cache-msa.cpp,
llama-kv-cache-dsv4.cpp, llama-memory-recurrent.cpp, llama-hparams.cpp; the patterns of sliding windows, of src/models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ggufsmith.container.encoders import is_encoder
from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.values import Metadata

CELLS = 256  # the numbers of cells are multiples of this
BATCH = 512  # tokens that are computed together, beside which a window is kept
TYPES = ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
# Architecture -> in every so many layers, all but the last look at a window only, unless the header says it.
WINDOWED: Mapping[str, int] = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma-embedding": 6,
    "cohere2": 4,
    "olmo2": 4,
    "exaone4": 4,
    "gpt-oss": 2,
    "llama4": 4,
    "afmoe": 4,
    "laguna": 4,
    "smallthinker": 4,
}
FIRST_LOOKS_FAR = ("laguna", "smallthinker")  # of so many, all but the first
# Architecture -> whether its indexer, which has one head, keeps values too, and not in the first, dense layers.
INDEXED = {
    **dict.fromkeys(("deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "qwen4exp"), False),
    "minimax-m3": True,
}
POOLED = {"glm5-next": 3}  # beside each key of an indexer, what pools are made of, and their keys
COMPRESSED = ("deepseek4",)  # beside a window, keys of so many tokens become one
INDEXED_RATIO = 4  # and with this number of tokens, an indexer chooses among those
CHUNK = 8192  # the window of Llama 4, whose header has none
FULL_EVERY = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}  # architecture -> which layers attend, if no key says it
# Architectures whose layers keep a state, all of them; beside a cache; where they have no heads; or where they have
# neither heads nor a feed-forward.
STATES_ALONE = ("mamba", "mamba2")
STATES_BESIDE = ("falcon-h1",)
STATES_OR_HEADS = ("granitehybrid", "jamba", "kimi-linear", "kimi-k3", "glm5-next", "bailingmoe3")
KEPT_APPENDED = ("bailingmoe3",)  # blocks for multi-token prediction have a cache beside the model's, or else none
ONE_OF_THREE = ("nemotron_h", "nemotron_h_moe")


def cache_type(name: str) -> Format:
    """The type of a cache. Usage for one that llama.cpp does not take."""
    if name.lower() not in TYPES:
        fix = f"Choose one of {', '.join(TYPES)}."
        raise Usage(f"{name!r} is not a type for a cache", where="--cache-type", fix=fix)
    return BY_NAME[name.upper()]


def cache_bytes(metadata: Metadata, context: int, kind: Format) -> int:
    """Bytes of the cache for so many tokens, states of recurrent layers included; 0 for a model without one.

    metadata: of the model. Where the header leaves something open, the larger number. With flash attention, as
    programs have it by default.
    """
    if is_encoder(metadata):
        return 0
    model = _Hyper(metadata)
    cells, window = _padded(context), model.window
    near = _padded(min(cells, window + BATCH)) if window else cells
    if model.name in COMPRESSED:
        return sum(_compressed(model, model.ratio(layer), cells, near, kind) for layer in range(model.layers))
    total = 0
    for layer in range(model.cached_layers):
        heads = model.kv_heads(layer)
        if not heads or (model.is_recurrent(layer) and model.name not in STATES_BESIDE):
            continue
        windowed = bool(window) and model.is_windowed(layer)
        rows = near if windowed else cells
        key, value = model.head_lengths(windowed)
        total += rows * (_row(kind, heads * key) + _row(kind, heads * value))
        if model.is_indexed(layer):
            index = model.number("attention.indexer.key_length")
            total += cells * (
                _row(kind, index * POOLED.get(model.name, 1)) + (_row(kind, value) if INDEXED[model.name] else 0)
            )
    return total + model.recurrent_layers * model.state_bytes + model.convolved_bytes


def _compressed(model: "_Hyper", ratio: int, cells: int, near: int, kind: Format) -> int:
    """Bytes of a layer of DeepSeek-V4: the keys of a window, and those of one token for each `ratio`.

    What becomes the next such token is kept in float32, twice as wide and twice as long where an indexer chooses.
    """
    key, index = model.number("attention.key_length"), model.number("attention.indexer.key_length")
    total = near * _row(kind, key)
    if not ratio:
        return total
    kept = _padded(-(-cells // ratio))
    total += kept * _row(kind, key)
    if ratio != INDEXED_RATIO:
        return total + 2 * ratio * 4 * key
    return total + kept * _row(kind, index) + 2 * (2 * ratio) * 4 * (2 * key + 2 * index)


def _padded(cells: int) -> int:
    return -(-cells // CELLS) * CELLS


def _row(kind: Format, width: int) -> int:
    """Bytes of a row. A type whose blocks it does not fit cannot be used; the next larger row is counted."""
    return -(-width // kind.weights) * kind.size


class _Hyper:
    """The numbers of a header that decide the cache."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.name = str(self._data("general.architecture") or "")
        appended = 0 if self.name in KEPT_APPENDED else self.number("nextn_predict_layers")
        self.layers = self.number("block_count") - appended

    def _data(self, key: str) -> Any:
        value = self.metadata.get(key)
        return None if value is None else value.data

    def said(self, key: str) -> Any:
        """The value of a key of the architecture."""
        return self._data(f"{self.name}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """A whole number; default for anything else."""
        value = self.said(key)
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    def at(self, key: str, layer: int, default: int) -> int:
        """A whole number that may be given for each layer."""
        value = self.said(key)
        if value is None or isinstance(value, int | float | str):
            return self.number(key, default)
        listed: Sequence[Any] = value
        return int(listed[layer]) if layer < len(listed) else default

    @property
    def cached_layers(self) -> int:
        """Layers that have a cache of their own; the last ones of some models use another's."""
        if self.name == "gemma3n":
            return min(self.layers, 20)
        return self.layers - self.number("attention.shared_kv_layers")

    @property
    def window(self) -> int:
        """Tokens that windowed layers look at; 0 if there are none."""
        if self.name == "llama4":
            return CHUNK
        windowed = self.name in (*WINDOWED, *COMPRESSED) or self.said("attention.sliding_window_pattern") is not None
        return self.number("attention.sliding_window") if windowed else 0

    def ratio(self, layer: int) -> int:
        """How many tokens become one in a layer; 0 for none."""
        listed = self.said("attention.compress_ratios")
        return self.at("attention.compress_ratios", layer, 0) if listed is not None else 0

    def is_windowed(self, layer: int) -> bool:
        """Whether a layer looks at a window only."""
        pattern = self.said("attention.sliding_window_pattern")
        if pattern is not None and not isinstance(pattern, int | float | str):
            return layer < len(pattern) and bool(pattern[layer])
        period = self.number("attention.sliding_window_pattern", WINDOWED.get(self.name, 0))
        if self.name in FIRST_LOOKS_FAR:
            return bool(period) and layer % period > 0
        return bool(period) and layer % period < period - 1

    def is_indexed(self, layer: int) -> bool:
        """Whether a layer keeps what its indexer chooses by."""
        listed = self.said("attention.indexer.types")
        if listed is not None and not isinstance(listed, int | float | str):
            return self.name in INDEXED and layer < len(listed) and bool(listed[layer])
        first = self.number("leading_dense_block_count") if INDEXED.get(self.name) else 0
        return self.name in INDEXED and layer >= first

    def kv_heads(self, layer: int) -> int:
        """Heads of keys and values."""
        return self.at("attention.head_count_kv", layer, self.at("attention.head_count", layer, 0))

    def head_lengths(self, windowed: bool) -> tuple[int, int]:
        """Numbers of a head's key and value. Latent attention keeps no values."""
        heads = max(self.at("attention.head_count", 0, 1), 1)
        usual = self.number("embedding_length") // heads
        swa = "_swa" if windowed else ""
        key = self.number(f"attention.key_length{swa}", self.number("attention.key_length", usual))
        value = self.number(f"attention.value_length{swa}", self.number("attention.value_length", usual))
        return key, 0 if self.number("attention.key_length_mla") else value

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer keeps a state, mostly instead of a cache."""
        if self.name in STATES_ALONE or self.name in STATES_BESIDE:
            return True
        if self.name in STATES_OR_HEADS:
            return not self.kv_heads(layer)
        if self.name in ONE_OF_THREE:
            return not self.kv_heads(layer) and not self.at("feed_forward_length", layer, 0)
        listed = self.said("attention.recurrent_layers")
        if listed is not None and not isinstance(listed, int | float | str):
            return layer < len(listed) and bool(listed[layer])
        every = self.number("full_attention_interval", FULL_EVERY.get(self.name, 0))
        return bool(every) and (layer + 1) % every != 0

    @property
    def recurrent_layers(self) -> int:
        """How many layers keep a state."""
        if self.number("shortconv.l_cache"):
            return sum(not self.kv_heads(layer) for layer in range(self.layers))
        return sum(map(self.is_recurrent, range(self.layers)))

    @property
    def convolved_bytes(self) -> int:
        """Of the last tokens that a block looks up, for its convolution, in float32; of Qwen3.8-Flash-Next."""
        if self.said("ple.layers") is None:
            return 0
        kept = (self.number("ple.conv_kernel") - 1) * self.number("ple.ngram_size")
        return 4 * kept * self.number("hyper_connection.count") * self.number("embedding_length")

    @property
    def state_bytes(self) -> int:
        """Of one recurrent layer, in float32."""
        if length := self.number("shortconv.l_cache"):
            return 4 * self.number("embedding_length") * (length - 1)
        if head := self.number("kda.head_dim"):
            kept = max(self.number("ssm.conv_kernel", 4) - 1, 0)  # of queries, keys and values
            return 4 * self.at("attention.head_count", 0, 0) * head * (3 * kept + head)
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        channels = inner + 2 * self.number("ssm.group_count") * state
        return 4 * (max(self.number("ssm.conv_kernel") - 1, 0) * channels + state * inner)
