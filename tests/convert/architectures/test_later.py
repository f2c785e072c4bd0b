"""What the records of later models refuse, and the pieces that they are made of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from ggufsmith.container.errors import Unsupported
from ggufsmith.convert.architectures.hrm import HRM_TEXT
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import RopePermute
from ggufsmith.convert.plan import make_plan
from ggufsmith.convert.stacks import counted_anew, counted_through
from ggufsmith.convert.stored import StoredTensor

LATER = {
    "muse-glimmer": [
        ({"layer_rope_theta": [5e5] * 6}, "rotates in the blocks that have a window"),
        ({"post_norm_eps": 1e-5}, "post_norm_eps"),
    ],
    "dbrx": [
        ({"ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "gelu"}}}, "assumes SiLU"),
        ({"ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_expert_weights": 2}}, "by their sum"),
    ],
    "step3p7": [
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
        ({"attention_other_setting": {"num_attention_groups": 4}}, "another number of key-value heads"),
    ],
    "bamba": [({"attn_rotary_emb": 32}, "attn_rotary_emb is 32")],
    "hrm-text": [({"num_hidden_layers": 5, "num_layers_per_stack": 2}, "num_hidden_layers is 5")],
    "hy-v4": [({"indexer_types": ["shared"] * 4}, "the first block must have an indexer")],
    "chameleon": [({"vocab_size": 300}, "at least 8196 tokens")],
}


def config_of(name: str, changes: dict[str, Any]) -> Config:
    line = zoo.ZOO[name]
    config = json.loads(json.dumps(line.config))
    text = config.get("text_config", config)
    text.update({"vocab_size": 9000, **changes})
    return Config({**config, "architectures": [line.model_class]}, Path("config.json"))


@pytest.mark.parametrize(
    ("name", "changes", "said"), [(name, *case) for name, cases in LATER.items() for case in cases], ids=str
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    make_plan(config_of(name, {}), None)
    with pytest.raises(Unsupported) as raised:
        make_plan(config_of(name, changes), None)
    assert said in str(raised.value)


def test_a_norm_that_is_made_of_the_config_is_not_taken_from_a_checkpoint() -> None:
    name = "model.language_model.layers.0.self_attn.q_norm.weight"
    tensors = {name: StoredTensor(name, (32,), "F32", Path(), 0, 128)}
    with pytest.raises(Unsupported) as raised:
        make_plan(config_of("muse-glimmer", {"num_hidden_layers": 1}), tensors)
    assert f"{name}: blk.0.attn_q_norm.weight does not exist in this model" in str(raised.value)


def test_blocks_of_two_stacks_are_counted_through() -> None:
    names = {f"model.{stack}_module.layers.{k}.x": 3 * (stack == "H") + k for stack in "LH" for k in range(3)}
    for name, block in names.items():
        through = counted_through(HRM_TEXT, name, 6)
        assert through == f"model.layers.{block}.x"
        assert counted_anew(HRM_TEXT, through, 6) == name
    for other in ("model.L_module.layers.3.x", "model.layers.6.x", "lm_head.weight"):
        assert counted_through(HRM_TEXT, other, 6) == other
    assert counted_anew(HRM_TEXT, "model.layers.6.x", 6) == "model.layers.6.x"


def test_only_what_rotates_of_a_head_is_reordered() -> None:
    values = np.arange(16)[:, None]
    op = RopePermute(2, rotary=4)

    def rows(op: RopePermute, values: Any) -> Any:
        return op.rows(lambda k, start, stop: values[start:stop], ((16, 1),), 0, 16)

    made = rows(op, values)
    assert made.ravel().tolist() == [0, 2, 1, 3, 4, 5, 6, 7, 8, 10, 9, 11, 12, 13, 14, 15]
    assert np.array_equal(rows(op.inverse(), made), values)
    with pytest.raises(ValueError, match="10 of the 8 rows of a head cannot be reordered"):
        RopePermute(2, rotary=10).shape((16, 1))
