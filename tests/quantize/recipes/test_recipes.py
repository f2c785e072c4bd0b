"""Recipes: names, options, recipe files. conformance/test_recipe_types.py shows that the rules are llama.cpp's."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME, format_of
from ggufsmith.container.values import array, string, u32
from ggufsmith.quantize.recipes.assign import (
    Assignment,
    Layers,
    Override,
    Recipe,
    Stored,
    TypeOptions,
    assign,
    facts_of,
    file_order,
)
from ggufsmith.quantize.recipes.files import format_recipe, read_recipe, recipe_of, shipped
from ggufsmith.quantize.recipes.filetypes import ALIASES, FILE_TYPES, file_type_of, shown
from ggufsmith.quantize.recipes.options import check_options, layers_of, override_of, overrides_of_file
from ggufsmith.quantize.recipes.rules import EVERY_ROLE, ROLES, RULES, Facts, block_of, kept, role_of

BF16 = BY_NAME["BF16"]
FACTS = Facts("llama", 8, heads=8, kv_heads=8)
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def model(width: int = 256, blocks: int = 8, tied: bool = False) -> list[Stored]:
    names = ["token_embd.weight", *([] if tied else ["output.weight"])]
    names += [f"blk.{block}.{part}.weight" for block in range(blocks) for part in PARTS]
    tensors = {name: Stored(name, (width, width), BF16) for name in names}
    tensors["output_norm.weight"] = Stored("output_norm.weight", (width,), BY_NAME["F32"])
    return [tensors[name] for name in file_order(tensors)]


def formats(recipe: Recipe, tensors: list[Stored], options: TypeOptions | None = None) -> dict[str, str]:
    return {each.tensor.name: each.format.name for each in assign(recipe, tensors, FACTS, options)}


# ---- names ----


@pytest.mark.parametrize("name", [*FILE_TYPES, *ALIASES])
def test_names_in_any_case(name: str) -> None:
    for text in (name, name.lower(), shown(name)):
        assert recipe_of(text).file_type is FILE_TYPES[ALIASES.get(name, name)]


def test_names_as_the_field_writes_them() -> None:
    assert [shown(name) for name in ("Q4_K_M", "IQ4_XS", "Q8_0", "MXFP4_MOE")] == [
        "q4_K_M",
        "iq4_xs",
        "q8_0",
        "mxfp4_moe",
    ]
    assert recipe_of("15").name == "Q4_K_M", "numbers as llama-quantize takes them"


def test_unknown_names_say_what_is_near() -> None:
    with pytest.raises(Usage, match="q4_K_M"):
        recipe_of("q4km")
    with pytest.raises(Usage, match="iq2_xxs_dyn"):
        recipe_of("iq2_xxs-dyn")


def test_every_rule_names_things_that_exist() -> None:
    for rules in (*RULES.values(), EVERY_ROLE):
        for rule in rules:
            assert rule.file_types <= FILE_TYPES.keys()
            assert not rule.format or rule.format in BY_NAME
    assert RULES.keys() <= set(ROLES)


def test_roles_and_what_is_kept() -> None:
    assert [role_of(f"blk.3.{part}.weight") for part in PARTS] == list(PARTS)
    assert role_of("blk.0.ffn_down_shexp.weight") == "ffn_down"
    assert role_of("output_norm.weight") == "other"
    assert kept("blk.0.attn_norm.weight", (2, 256), "llama")
    assert kept("blk.0.ffn_gate_inp.weight", (8, 256), "llama")
    assert kept("blk.0.attn_q.weight", (1, 256), "llama"), "one row is a vector"
    assert kept("blk.0.attn_q.weight", (2, 256), "llama") is None


# ---- assignments ----


def test_some_known_mixtures() -> None:
    found = formats(recipe_of("q4_K_M"), model())
    assert found["output.weight"] == "Q6_K" and found["token_embd.weight"] == "Q4_K"
    more = [found[f"blk.{block}.ffn_down.weight"] for block in range(8)]
    assert [kind == "Q6_K" for kind in more] == [True, False, False, True, False, False, True, True]
    assert formats(recipe_of("q4_K_M"), model(tied=True))["token_embd.weight"] == "Q6_K"
    assert set(formats(recipe_of("q4_K_M"), model(), TypeOptions(pure=True)).values()) == {"Q4_K", "F32"}
    assert set(formats(recipe_of("copy"), model()).values()) == {"BF16", "F32"}


def test_fallbacks_are_told() -> None:
    found = {each.tensor.name: each for each in assign(recipe_of("q4_K_M"), model(160), FACTS)}
    q = found["blk.1.attn_q.weight"]
    assert (q.format.name, q.wanted.name, q.fallback) == ("Q5_0", "Q4_K", True)
    assert "160" in q.reason and "256" in q.reason
    narrow = {each.format.name for each in assign(recipe_of("q4_K_M"), model(144), FACTS) if len(each.tensor.shape) > 1}
    assert narrow == {"F16"}
    with pytest.raises(Unsupported, match=r"token_embd.*160"):
        assign(recipe_of("q1_0"), model(160), FACTS)


def test_importance_is_needed_where_llama_quantize_needs_it() -> None:
    def needy(name: str) -> set[str]:
        return {role_of(e.tensor.name) for e in assign(recipe_of(name), model(), FACTS) if e.needs_importance}

    assert needy("iq2_xxs") >= {"attn_q", "ffn_up"}
    assert needy("q2_K") == set()
    assert "ffn_up" in needy("q2_K_s")
    assert needy("iq4_xs") == set()
    embedding = TypeOptions(token_embedding_type=format_of("iq2_xs"))
    found = assign(recipe_of("q4_K_M"), model(), FACTS, embedding)
    assert [e.tensor.name for e in found if e.needs_importance] == ["token_embd.weight"]


def test_options_before_overrides_before_rules() -> None:
    overrides = (override_of("ATTN_V=q8_0"), override_of("attn_=iq4_xs"), override_of("token_embd|output=q5_0"))
    options = TypeOptions(output_type=format_of("q4_1"), overrides=overrides)
    found = formats(recipe_of("q4_K_M"), model(), options)
    assert (found["blk.0.attn_v.weight"], found["blk.0.attn_q.weight"]) == ("Q8_0", "IQ4_XS"), "the first one decides"
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q4_1", "Q5_0")
    with pytest.raises(Usage, match="ffn_norm"):
        assign(recipe_of("q4_K_M"), model(), FACTS, TypeOptions(overrides=(override_of("ffn_norm=q8_0"),)))


@given(st.sampled_from(sorted(FILE_TYPES)), st.sampled_from([16, 32, 96, 128, 256, 288]), st.integers(1, 12))
def test_every_format_fits(name: str, width: int, blocks: int) -> None:
    """Whatever the recipe and the width: rows are whole blocks, vectors stay, nothing is lost or invented."""
    tensors = model(width, blocks)
    try:
        found: list[Assignment] = assign(Recipe(name, FILE_TYPES[name]), tensors, FACTS)
    except Unsupported:
        assert name in ("Q1_0", "NVFP4", "MXFP4_MOE")
        return
    assert [each.tensor for each in found] == tensors
    for each in found:
        assert each.tensor.shape[-1] % each.format.weights == 0
        assert len(each.tensor.shape) > 1 or each.copied


def test_facts() -> None:
    keys = {"general.architecture": string("x"), "x.block_count": u32(4), "x.attention.head_count": u32(8)}
    assert facts_of(keys) == Facts("x", 4, heads=8, kv_heads=8)
    import numpy as np

    keys["x.attention.head_count_kv"] = array(np.array([2, 4, 4, 4], np.uint32))
    assert facts_of(keys).sharing == 4, "of the first layer"


def test_layers() -> None:
    quarter = Layers(first=0.25, last=0.25)
    assert [k for k in range(32) if quarter.holds(k, 32)] == [*range(8), *range(24, 32)]
    assert [k for k in range(8) if Layers(frozenset({1, 5})).holds(k, 8)] == [1, 5]


# ---- texts of options ----


@pytest.mark.parametrize("digits", ["²", "٣", "9" * 10, "9" * 5000], ids=lambda digits: digits[:12])
def test_numbers_that_are_none(digits: str) -> None:
    """In the names of tensors and of recipes, which come from anywhere."""
    assert block_of(f"blk.{digits}.attn_q.weight") is None
    assert file_type_of(digits) is None


def test_texts(tmp_path: Path) -> None:
    assert override_of(r"blk\.[0-3]=x=q8_0").match == re.compile(r"blk\.[0-3]=x", re.IGNORECASE)
    assert layers_of("3, 1,1") == (1, 3)
    path = tmp_path / "types.txt"
    path.write_text("attn_v=q8_0 ffn=q6_K\n\nattn_q=f16\n", encoding="utf-8")
    assert [o.format.name for o in overrides_of_file(path)] == ["Q8_0", "Q6_K", "F16"]
    path.write_text("attn_v=q8_0\n(=q6_K\n", encoding="utf-8")
    with pytest.raises(Usage, match=r"types\.txt:2"):
        overrides_of_file(path)
    for text in ("attn_v", "=q8_0", "attn_v=q88", "(=q8_0"):
        with pytest.raises(Usage):
            override_of(text)
        path.write_text(f"attn_k=q8_0\n{text}\n", encoding="utf-8")
        with pytest.raises(Usage, match=re.escape(f"{path}:2")):
            overrides_of_file(path)
    for text in ("", "1,", "-1", "a", "²", "٣", "9" * 5000):
        with pytest.raises(Usage):
            layers_of(text)


def test_contradictions() -> None:
    q8 = format_of("q8_0")
    for options, name in (
        (TypeOptions(leave_output=True, output_type=q8), "q4_K_M"),
        (TypeOptions(pure=True), "copy"),
        (TypeOptions(overrides=(Override(q8),)), "copy"),
        (TypeOptions(pure=True), "q4_K_L"),
    ):
        with pytest.raises(Usage):
            check_options(options, [recipe_of(name)])
    check_options(TypeOptions(pure=True), [recipe_of("q4_K_M")])


# ---- recipe files ----


@pytest.mark.parametrize("name", shipped())
def test_shipped_files(name: str) -> None:
    recipe = recipe_of(name.lower())
    assert recipe.description and recipe.overrides
    found = formats(recipe, model(blocks=16))
    edges = ("token_embd.weight", "output.weight")
    if name.endswith("_DYN"):
        base = formats(Recipe(recipe.file_type.name, recipe.file_type), model(blocks=16))
        assert all(found[edge] == base[edge] for edge in edges)
        assert found["blk.0.ffn_up.weight"] != found["blk.4.ffn_up.weight"]
        assert found["blk.4.attn_k.weight"] != base["blk.4.attn_k.weight"]
    else:
        assert {found[edge] for edge in edges} == {"Q8_0"}


def test_extending(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'extends = "q4_K_M"\n[[rule]]\ntype = "q8_0"\nrole = "attn_v"\n', encoding="utf-8"
    )
    (tmp_path / "mine.toml").write_text(
        'extends = "base.toml"\n'
        '[[rule]]\ntype = "f16"\ntensors = ["blk.0.attn_v.weight"]\n'
        '[[rule]]\ntype = "iq4_nl"\nmatch = "FFN_(up|gate)"\nlayers = [1, 7]\n'
        '[[rule]]\ntype = "q5_0"\nmatch = "ffn_up"\nlayers = {last = 0.25}\n',
        encoding="utf-8",
    )
    recipe = recipe_of(str(tmp_path / "mine.toml"))
    assert (recipe.name, recipe.file_type.name) == ("mine", "Q4_K_M")
    found = formats(recipe, model())
    assert [found[f"blk.{block}.attn_v.weight"] for block in (0, 1, 7)] == ["F16", "Q8_0", "Q8_0"]
    assert [found[f"blk.{block}.ffn_up.weight"] for block in (1, 5, 6, 7)] == ["IQ4_NL", "Q4_K", "Q5_0", "IQ4_NL"]
    assert found["output.weight"] == "Q6_K"


RULE = '# a comment\nextends = "q4_K_M"\n\n[[rule]]\ntype = "q8_0"\n\n[[rule]]\n'


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('extends = "q4_K_M"\nrule = [', 2, "TOML"),
        ('extends = "q4_K_M"\nname = "../q4"', 2, "letters"),
        ("", None, "extends"),
        ('\nextends = "q4km"', 2, "q4km"),
        ('extends = "q4_K_M"\nbase = 1', 2, "'base'"),
        ("extends = 3", 1, "extends"),
        (RULE + 'type = "q9_0"', 8, "q9_0"),
        (RULE + "# none", 7, "type"),
        (RULE + 'type = "q8_0"\nmatch = "("', 9, "regular expression"),
        (RULE + 'type = "q8_0"\nrole = "attn_w"', 9, "attn_w"),
        (RULE + 'type = "q8_0"\nrole = [1]', 9, "role"),
        (RULE + 'type = "q8_0"\ntensors = []', 9, "tensors"),
        (RULE + 'type = "q8_0"\nlayers = [-1]', 9, "layers"),
        (RULE + 'type = "q8_0"\nlayers = {first = 2}', 9, "fraction"),
        (RULE + 'type = "q8_0"\nlayers = {mid = 0.5}', 9, "layers"),
        (RULE + 'type = "q8_0"\nlayer = 1', 9, "'layer'"),
        ('extends = "copy"\n[[rule]]\ntype = "q8_0"', 1, "COPY"),
    ],
)
def test_errors_say_the_line(text: str, line: int | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Malformed, match=re.escape(message)) as caught:
        read_recipe(path)
    assert str(caught.value.where) == (f"{path}:{line}" if line else str(path))


def test_yaml(tmp_path: Path) -> None:
    """The same rules as in TOML, found by the ending; errors say the line too."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: Q4_MINE\nextends: q4_K_M\nrule:\n  - type: q6_K\n    role: attn_v\n    layers: {first: 0.25}\n",
        encoding="utf-8",
    )
    recipe = recipe_of(str(path))
    assert recipe.name == "Q4_MINE"
    assert formats(recipe, model())["blk.1.attn_v.weight"] == "Q6_K"
    (tmp_path / "more.yml").write_text(
        "extends: mine.yaml\nrule:\n  - type: q6_K\n    rôle: attn_v\n", encoding="utf-8"
    )
    with pytest.raises(Malformed, match="'rôle'") as caught:
        recipe_of("more.yml", tmp_path)
    assert str(caught.value.where).endswith("more.yml:4")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('match = "ffn_donw"', "matches none"),
        ('tensors = ["blk.9.attn_v.weight"]', "matches none"),
        ('role = "attn_v"\nlayers = [0, 8]', "no layer 8; the model has layers 0 to 7"),
        ('match = "attn_norm"', "matches none"),
    ],
)
def test_rules_that_point_at_nothing(rule: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "q4_K_M"\n[[rule]]\ntype = "q8_0"\n{rule}\n', encoding="utf-8")
    with pytest.raises(Usage, match=rf"mine\.toml:2: .*{message}"):
        assign(read_recipe(path), model(), FACTS)


def test_a_role_that_a_model_lacks_is_no_mistake() -> None:
    assert formats(recipe_of("q4_K_L"), model(tied=True))["token_embd.weight"] == "Q8_0"


def test_circles(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"', encoding="utf-8")
    (tmp_path / "b.toml").write_text('extends = "a.toml"', encoding="utf-8")
    with pytest.raises(Malformed, match="circle"):
        read_recipe(tmp_path / "a.toml")


def test_written_files_are_read_back(tmp_path: Path) -> None:
    chosen = {each.name: "Q8_0" if "attn" in each.name else "Q4_K" for each in model() if len(each.shape) > 1}
    (tmp_path / "x.toml").write_text(format_recipe("Q5_X", "q4_K_M", 'a "quoted" text', chosen), encoding="utf-8")
    recipe = read_recipe(tmp_path / "x.toml")
    assert recipe.name == "Q5_X"
    found = formats(recipe, model())
    assert {name: found[name] for name in chosen} == chosen


LLAMA_3_8B = {
    **dict.fromkeys(("attn_q", "attn_output"), (4096, 4096)),
    **dict.fromkeys(("attn_k", "attn_v"), (1024, 4096)),
    **dict.fromkeys(("ffn_gate", "ffn_up"), (14336, 4096)),
    "ffn_down": (4096, 14336),
}
# Of the published mixes, at the shape of Llama-3-8B.
ADDITIONS = {"iq1_s": 0.3e9, "iq1_m": 0.3e9, "iq2_xxs": 0.1e9, "iq2_xs": 0.1e9, "iq2_s": 0.2e9}


@pytest.mark.parametrize("name", ADDITIONS)
def test_dynamic_recipes_stay_within_the_published_additions(name: str) -> None:
    """And no matrix has fewer bits than in the recipe that they extend."""
    shapes = {f"blk.{k}.{part}.weight": shape for k in range(32) for part, shape in LLAMA_3_8B.items()}
    shapes |= dict.fromkeys(("token_embd.weight", "output.weight"), (128256, 4096))
    tensors = [Stored(each, shapes[each], BF16) for each in file_order(shapes)]
    facts = Facts("llama", 32, heads=32, kv_heads=8, importance=True)
    base, dynamic = (assign(recipe_of(each), tensors, facts) for each in (name, f"{name}_dyn"))
    size, larger = (sum(each.nbytes for each in several) for several in (base, dynamic))
    assert 0.85 * ADDITIONS[name] < larger - size <= ADDITIONS[name]
    assert all(new.nbytes >= old.nbytes for old, new in zip(base, dynamic, strict=True))
    recipe = recipe_of(f"{name}_dyn")
    assert recipe.addition * size <= ADDITIONS[name] < (recipe.addition + 0.002) * size
    assert base[0].format is dynamic[0].format, "embeddings are as they were"


def test_an_addition_is_a_part(tmp_path: Path) -> None:
    for text, said in (("1.5", "from 0 to 1"), ("-0.1", "from 0 to 1"), ('"x"', "addition cannot be 'x'")):
        (tmp_path / "r.toml").write_text(f'extends = "q4_0"\naddition = {text}\n', encoding="utf-8")
        with pytest.raises(Malformed, match=said):
            read_recipe(tmp_path / "r.toml")
