"""What the records of the newest models refuse, because llama.cpp would compute something else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import newest
from ggufsmith.container.errors import Unsupported
from ggufsmith.convert.architectures.qwen4_exp import JoinedRows
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Indices
from ggufsmith.convert.plan import make_plan

REFUSED = {
    "deepseek-v4": [
        ({"layer_types": ["sliding_attention"] * 4 + ["full_attention"]}, "compress_ratios must have 0, 4 or 128"),
        ({"compress_rates": {"compressed_sparse_attention": 8}}, "compress_ratios must have 0, 4 or 128"),
        ({"mlp_layer_types": ["hash_moe", "moe", "hash_moe", "moe", "moe"]}, "are the first ones"),
        ({"hc_mult": 2}, "hc_mult is 2"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
    ],
    "glm5-next": [
        ({"index_kpool": 3}, "index_topk must be a multiple of index_kpool"),
        ({"indexer_types": ["shared"] * 6}, "must have an indexer"),
        ({"qk_rope_head_dim": 16}, "qk_rope_head_dim is 16"),
    ],
    "qwen4-exp": [
        ({"output_gate_type": None}, "the gate of linear attention is 'silu'"),
        ({"ple_layer_ids": [1, 2]}, "no more than one block can look them up"),
    ],
    "dots3-note": [
        ({"swa_q_lora_rank": 32}, "one q_lora_rank for both kinds of blocks"),
        ({"shared_experts_intermediate_size": 32}, "shared experts are as long as the others"),
        ({"layer_types": ["full_attention"] * 6}, "some block has a sliding window"),
        ({"per_layer_config": {"0": {"kv_lora_rank": 64}, "2": {"kv_lora_rank": 32}}}, "different sizes"),
    ],
    "kimi-k3": [({"hidden_act": "silu"}, "hidden_act is 'silu'")],
    "ling": [({"norm_head": True}, "norm_head is True"), ({"first_k_dense_replace": 1}, "first_k_dense_replace is 1")],
    "small-thinker": [
        ({"sliding_window_layout": [1, 1, 1, 0]}, "all but every fourth block, from the first on"),
        ({"sliding_window_size": 512}, "a sliding window of 4096 tokens"),
        ({"rope_layout": [1, 1, 1, 1]}, "rotate"),
    ],
}


def config_of(name: str, changes: dict[str, Any]) -> Config:
    line = newest.NEWEST[name]
    config = json.loads(json.dumps(line.model.config))
    text = config.get("text_config", config)
    text.update({"vocab_size": 9000, "eos_token_id": 1, **changes})
    return Config({**config, "architectures": [line.model_class]}, Path("config.json"))


@pytest.mark.parametrize(
    ("name", "changes", "said"), [(name, *case) for name, cases in REFUSED.items() for case in cases], ids=str
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    make_plan(config_of(name, {}), None)
    with pytest.raises(Unsupported) as raised:
        make_plan(config_of(name, changes), None)
    assert said in str(raised.value)


def test_matrices_one_below_the_other() -> None:
    parts = [np.arange(6).reshape(3, 2), np.arange(6, 8).reshape(1, 2), np.arange(8, 12).reshape(2, 2)]
    shapes = tuple(part.shape for part in parts)
    op = JoinedRows(3)
    assert op.shape(*shapes) == (6, 2)
    for start in range(6):
        for stop in range(start + 1, 7):
            found = op.rows(lambda k, first, last: parts[k][first:last], shapes, start, stop)
            assert found.ravel().tolist() == list(range(2 * start, 2 * stop))
    for wrong in (shapes[:2], (*shapes[:2], (2, 3))):
        with pytest.raises(ValueError, match="3 matrices of one width"):
            op.shape(*wrong)


def test_indices_are_within_their_bound() -> None:
    values = np.array([[0, 7], [3, 2]], np.int64)
    assert Indices(8).rows(lambda k, first, last: values[first:last], ((2, 2),), 0, 2).dtype == np.int32
    for bound, numbers in ((7, values), (8, -values)):
        with pytest.raises(ValueError, match="it chooses from 0 to"):
            Indices(bound).rows(lambda k, first, last, numbers=numbers: numbers[first:last], ((2, 2),), 0, 2)
