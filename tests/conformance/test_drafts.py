"""Draft models beside the models that they draft for: bytes as llama.cpp's converter's, logits as transformers'."""

from pathlib import Path
from typing import Any

import drafting
import numpy as np
import pytest
import quantizer
import tokenizer_oracles as oracles
from numpy.typing import NDArray
from test_convert import PRE, ours, tensors

import drafts
import reference
import tiny
import zoo
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.open import open_pass
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.variants import opened_model
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from requesting import request, run

pytestmark = pytest.mark.conformance

STEPS = 3
WITHIN = 8  # the sliding window of the tiny models


def error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def with_table(model: Any) -> Any:
    """The model, with ggml's GELU."""
    import torch

    for module in model.modules():
        if type(module).__name__ == "GELUTanh":
            module.forward = lambda x: torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return model


@pytest.mark.parametrize("name", drafts.DRAFTS)
def test_tensors_and_keys(name: str, tmp_path: Path) -> None:
    line, folder = drafts.DRAFTS[name].model, tmp_path / "Tiny-Fixture"
    folder.mkdir()
    drafts.write(name, folder)
    notes = make_plan(open_config(folder), None).notes
    assert not [note for note in notes if note.startswith("these keys of config.json")]
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    if line.reference:
        return
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", raw=True))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys()
    assert not [each for each in a if a[each] != b[each]], "tensors that differ"
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, line.differs.keys())


@pytest.mark.parametrize("name", [name for name in drafts.DRAFTS if name.startswith("gemma4")])
def test_an_assistant_of_gemma_4(name: str, tmp_path: Path) -> None:
    """It guesses a token from the last one and its hidden state, with the keys and values of the larger model.

    Within the sliding window: beyond, llama.cpp lets it see one position less than transformers does.
    """
    import torch

    line = drafts.DRAFTS[name]
    folders = [tmp_path / "Target", tmp_path / "Draft"]
    for folder in folders:
        folder.mkdir()
    target, draft = with_table(zoo.write(line.target, folders[0])), with_table(drafts.write(name, folders[1]))
    draft.config.use_ordered_embeddings = False  # llama.cpp scores every token
    files = [ours(folder, tmp_path / f"{folder.name}.gguf", "f32").path for folder in folders]
    *text, last = np.random.default_rng(5).integers(3, 300, WITHIN).tolist()
    width, size = target.config.hidden_size, draft.config.get_text_config().vocab_size
    with torch.no_grad():
        made = target(torch.tensor([text]), output_hidden_states=True, return_shared_kv_states=True)
    embed, state = target.get_input_embeddings(), made.hidden_states[-1][:, -1:]
    with drafting.opened(files[0]) as (_, target_context), drafting.opened(files[1], target_context) as (_, context):
        drafting.keep_states(target_context, masked=False)
        drafting.keep_states(context, masked=True)
        drafting.decode(target_context, text)
        found = drafting.states_of(target_context, len(text) - 1, width)
        errors = [error(found, state[0, 0].numpy())]
        for _ in range(STEPS):
            inputs = torch.cat([embed(torch.tensor([[last]])), state], -1)
            with torch.no_grad():
                step = draft(
                    inputs_embeds=inputs,
                    position_ids=torch.tensor([[len(text)]]),
                    shared_kv_states=made.shared_kv_states,
                )
            drafting.decode(context, [last], len(text), [found])
            errors.append(error(drafting.logits_of(context, 0, size), step.logits[0, 0].numpy()))
            state = step.last_hidden_state
            errors.append(error(drafting.states_of(context, 0, width), state[0, 0].numpy()))
            found = state[0, 0].numpy()  # so that what tables leave out does not add up from step to step
            last = int(step.logits.argmax())
    print(name, errors)
    assert max(errors) < line.model.nmse


PREDICTING = (
    "qwen3_5",
    "qwen3_5-moe",
    "qwen3-next",
    "glm4-moe",
    "glm4-moe-lite",
    "deepseek-v32",
    "hy-v3",
    "north-mini",
)


def predicting(name: str, folder: Path, **options: Any) -> Path:
    """A folder of a line of the zoo, with a block for multi-token prediction."""
    folder.mkdir()
    zoo.write(name, folder, published=zoo.ZOO[name].two_spellings, **options)
    if name.startswith("qwen3"):
        tiny.add_mtp(folder, 1)
    return folder


@pytest.mark.parametrize("name", PREDICTING)
def test_blocks_for_multi_token_prediction_in_a_file_of_their_own(name: str, tmp_path: Path) -> None:
    """Bytes as the converter's, where it makes such a file; computed by llama.cpp as with the blocks in the whole."""
    line, folder = zoo.ZOO[name], predicting(name, tmp_path / "Tiny-Fixture")
    whole = ours(folder, tmp_path / "whole.gguf", "f32")
    run(request(folder, outtype="f32", mtp="only", outdir=tmp_path))
    mine = open_gguf(tmp_path / "mtp-Tiny-Fixture-F32.gguf")
    a = tensors(mine)
    assert not [each for each in a if each.startswith("blk.0.")]
    assert a.items() <= tensors(whole).items()
    if name not in ("north-mini",):  # of Cohere's models, the converter makes none
        options = [each for each in line.options if each not in zoo.NO_MTP]
        settings = {"pre": PRE.get(line.vocabulary, ""), "raw": True, "generic": line.generic}
        path = reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", "--mtp", *options, **settings)
        theirs = open_gguf(path)
        b = tensors(theirs)
        assert a.keys() == b.keys()
        assert not [each for each in a if a[each] != b[each]], "tensors that differ"
        assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, line.differs.keys())
    ids = np.random.default_rng(5).integers(3, 300, 24).tolist()
    found = [guesses(whole.path, draft, ids) for draft in (mine.path, whole.path)]
    assert np.isfinite(found[0]).all() and found[0].std() > 0
    assert np.array_equal(*found)


def guesses(target: Path, draft: Path, ids: list[int]) -> NDArray[np.float32]:
    """The logits that blocks for multi-token prediction give after every token: (tokens, vocabulary)."""
    import llama_cpp as llama

    with drafting.opened(target) as (_, target_context):
        drafting.keep_states(target_context, masked=False)
        drafting.decode(target_context, ids)
        with drafting.opened(draft, target_context, ctx_type=llama.LLAMA_CONTEXT_TYPE_MTP) as (model, context):
            width, size = (
                llama.llama_model_n_embd_out(model),
                llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)),
            )
            states = [np.zeros(width, np.float32)]
            states += [drafting.states_of(target_context, row, width) for row in range(len(ids) - 1)]
            drafting.keep_states(context, masked=True)
            drafting.decode(context, ids, 0, states)
            return np.array([drafting.logits_of(context, row, size) for row in range(len(ids))])


@pytest.mark.parametrize("name", [name for name, line in drafts.DRAFTS.items() if not line.model.reference])
@pytest.mark.parametrize("recipe", ["q8_0", "q4_K_M"])
def test_quantized_in_one_step_as_by_the_converter_and_the_quantizer(name: str, recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    drafts.write(name, folder, wide=True, dtype="bfloat16")
    run(request(folder, recipe, outfile=tmp_path / "ours.gguf"))
    middle = reference.convert(folder, tmp_path / "middle.gguf", "--outtype", "bf16", raw=True)
    quantizer.quantize(middle, tmp_path / "theirs.gguf", quantizer.Settings(FILE_TYPES[recipe.upper()].number or 0))
    a, b = tensors(open_gguf(tmp_path / "ours.gguf")), tensors(open_gguf(tmp_path / "theirs.gguf"))
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if a[each] != b[each]], "tensors that differ"


def test_what_cannot_run_alone_is_refused_and_the_command_for_both_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    drafts.write("gemma4-assistant", folder)
    with open_pass(request(folder)) as planned:
        assert [
            note for note in planned.notes if note.endswith(" -m MODEL.gguf -md draft-F16.gguf --spec-type draft-mtp")
        ]
    folders = (request(folder), request(predicting("qwen3_5", tmp_path / "whole"), mtp="only"))
    for each in folders:
        with pytest.raises(Unsupported, match="guesses tokens for a larger one"), opened_model(each):
            pass
