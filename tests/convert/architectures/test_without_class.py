"""What the records of models without a class in transformers refuse, and say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layout_twins
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.convert.architecture import Dims
from ggufsmith.convert.config import Config
from ggufsmith.convert.plan import make_plan
from ggufsmith.convert.scale import RoundedToTernary

BLOCK = {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 3}}
REFUSED = {
    "qwen": [
        ({"kv_channels": 64}, "kv_channels is 64, but llama.cpp assumes 128 / 4"),
        ({"no_bias": False}, "no_bias is False"),
    ],
    "chatglm": [
        ({"position_encoding_2d": True}, "this is ChatGLM 1"),
        ({"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 16}, "rope_ratio stretches positions"),
        ({"pre_seq_len": 128}, "pre_seq_len is 128"),
        ({"quantization_bit": 4}, "quantization_bit is 4"),
    ],
    "deci": [
        ({"block_configs": [{**BLOCK, "ffn": {"ffn_mult": None}}] * 5}, "block 0 has attention and no feed-forward"),
        (
            {"block_configs": [{**BLOCK, "attention": {"n_heads_in_group": 2, "window_length": 8}}] * 5},
            "block 0 attends to a window",
        ),
    ],
    "deepseek-moe": [
        ({"norm_topk_prob": True}, "norm_topk_prob is True"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    ],
    "bitnet": [
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2', but llama.cpp computes SiLU for every BitNet"),
        ({"architectures": ["BitNetForCausalLM"], "hidden_act": None}, "hidden_act is 'relu2'"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "quantization_config is"),
    ],
    "orion": [({"hidden_act": "gelu"}, "hidden_act is 'gelu'")],
    "maincoder": [({"use_qk_norm": False}, "use_qk_norm is False")],
}


def config_of(name: str, changes: dict[str, Any]) -> Config:
    twin = layout_twins.TWINS[name]
    own = {"vocab_size": 300, "architectures": [twin.model_class]}
    whole = json.loads(json.dumps({**own, **twin.model.config, **twin.config, **changes}))
    return Config(whole, Path("config.json"))


@pytest.mark.parametrize(
    ("name", "changes", "said"), [(name, *case) for name, cases in REFUSED.items() for case in cases], ids=str
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    make_plan(config_of(name, {}), None)
    with pytest.raises(Unsupported) as raised:
        make_plan(config_of(name, changes), None)
    assert said in str(raised.value)


@pytest.mark.parametrize("part", [None, *({"n_heads_in_group": value} for value in ("2", -1, True))])
def test_a_damaged_block_is_malformed(part: Any) -> None:
    with pytest.raises(Malformed, match=r"n_heads_in_group|must hold attention"):
        make_plan(config_of("deci", {"block_configs": [{**BLOCK, "attention": part}] * 5}), None)


def test_what_long_contexts_need_is_said() -> None:
    notes = make_plan(config_of("qwen", {}), None).notes
    assert [note for note in notes if "use_dynamic_ntk" in note] and [note for note in notes if "use_logn_attn" in note]
    assert [
        note
        for note in make_plan(config_of("minicpm", {"sparse_config": {"topk": 64}}), None).notes
        if "sparse" in note
    ]


def test_sizes_of_one_block_alone() -> None:
    dims = Dims(2, 8, 8, 2, 2, 4, 4, 16, own=({"kv_heads": 1}, {"ff": 32}))
    assert [dims.at(block).sizes("kv ff") for block in (None, 0, 1)] == [(8, 16), (4, 16), (8, 32)]


def test_weights_become_ternary_under_the_mean_of_the_whole_matrix() -> None:
    values = np.array([[0.5, -1.5], [0.1, 1.9]], np.float32)
    whole = RoundedToTernary().rows(lambda k, start, stop: values[start:stop], ((2, 2),), 0, 2)
    assert whole.tolist() == [[0, -1], [0, 1]]  # the mean is 1, and one half rounds to zero
    assert np.array_equal(
        RoundedToTernary().rows(lambda k, start, stop: values[start:stop], ((2, 2),), 1, 2), whole[1:]
    )
    zeros = RoundedToTernary().rows(lambda k, start, stop: np.zeros((2, 2), np.float32), ((2, 2),), 0, 2)
    assert not zeros.any()
