"""Every error that names an option or a command for the next step: the step is taken, and it works.

`CASES` has what goes wrong and what the advice makes of it. Every text of the product that advises is met there, or
`ELSEWHERE` names the test that follows it; so an error with new advice comes with a line here.
"""

import ast
import json
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as models
import typer
from typer.main import get_command
from typer.testing import CliRunner

import adapters
import checkpoints
import eagle3
import messages
import seeing
from ggufsmith.cli.app import app, convert_app, quant_app
from ggufsmith.container.errors import Failure
from ggufsmith.container.reader import open_gguf
from ggufsmith.quantize.sensitivity import Sensitivity, TensorSensitivity, write_sensitivity

APPS = {"gguf-convert": convert_app, "gguf-quant": quant_app, "ggufsmith": app}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
ADVICE = re.compile(
    r"(?<![\w-])--[a-z]|`(gguf|git|hf)|^pip |(^|: )(gguf-convert|gguf-quant|ggufsmith|hf|modelscope|pip) "
)
# Texts with such words that are no advice: help, examples, keys, documents, parts of other messages.
OTHER = re.compile(
    r"cli/(help|hints|options|batch|batch_report)\.py|api/report\.py|pipeline/(request|publish)\.py|convert/batch/schema|/modelcard|/cardrun"
)


@dataclass(frozen=True)
class Case:
    """typed: what fails. then: the command that follows the advice; empty if the advice is a command itself.

    work: carry it out, for what a plan does not show.
    """

    typed: str
    then: str = ""
    work: bool = False


CASES = {
    "a card that was not written here": Case(
        "ggufsmith card cards/m.gguf", "ggufsmith card cards/m.gguf --output x.md"
    ),
    "a card beside an output": Case(
        "gguf-quant m.gguf -r q8_0 --outdir cards --card", "gguf-quant m.gguf -r q8_0 --outdir new --card"
    ),
    "a template without a card": Case(
        "gguf-quant m.gguf -r q8_0 --card-template t.j2 --outdir new",
        "gguf-quant m.gguf -r q8_0 --card-template t.j2 --outdir new --card",
    ),
    "a template that is not there": Case(
        "ggufsmith card m.gguf -o - --card-template absent", "ggufsmith card m.gguf -o - --card-template t.j2"
    ),
    "a path for a name": Case(
        "gguf-quant m.gguf -r q8_0 --quantized-by /home/me", "gguf-quant m.gguf -r q8_0 --quantized-by me"
    ),
    "a Modelfile of shards": Case(
        "gguf-quant m.gguf -r q8_0 --outdir new --split-max-tensors 5 --modelfile",
        "gguf-quant m.gguf -r q8_0 --outdir new --split-max-tensors 5",
    ),
    "a Modelfile of an adapter": Case(
        "ggufsmith modelfile chat.gguf -o -", "ggufsmith modelfile chat.gguf --base m.gguf -o -"
    ),
    "a Modelfile of a draft": Case(
        "gguf-convert draft --target deep -r q8_0 --outdir new --modelfile",
        "gguf-convert draft --target deep -r q8_0 --outdir new",
    ),
    "a base for a model": Case("ggufsmith modelfile m.gguf --base m.gguf -o -", "ggufsmith modelfile m.gguf -o -"),
    "a Modelfile by hand": Case(
        "ggufsmith modelfile cards/m.gguf", "ggufsmith modelfile cards/m.gguf --output x.Modelfile"
    ),
    "publishing without a place": Case(
        "gguf-quant m.gguf -r q8_0 --outdir new --private", "gguf-quant m.gguf -r q8_0 --outdir new"
    ),
    "a card is left out": Case(
        "gguf-quant m.gguf -r q8_0 --outdir cards --card", "gguf-quant m.gguf -r q8_0 --outdir cards"
    ),
    "a record that is there": Case(
        "gguf-quant m.gguf -r q8_0 -o recorded/m.gguf --provenance --no-overwrite",
        "gguf-quant m.gguf -r q8_0 --outdir new --provenance --no-overwrite",
    ),
    "an output that is there": Case(
        "gguf-quant m.gguf -r q8_0 -o q8.gguf --no-overwrite", "gguf-quant m.gguf -r q8_0 -o q8.gguf"
    ),
    "a recipe file without a folder": Case(
        "gguf-quant small.gguf --target-bpw 8 --save-recipe none/r.toml",
        "gguf-quant small.gguf --target-bpw 8 --save-recipe r.toml",
    ),
    "a recipe file that is there": Case(
        "gguf-quant small.gguf --target-bpw 8 --save-recipe old.toml --no-overwrite",
        "gguf-quant small.gguf --target-bpw 8 --save-recipe q.toml --no-overwrite",
    ),
    "a recipe file of another kind": Case(
        "gguf-quant small.gguf --target-bpw 8 --save-recipe mine",
        "gguf-quant small.gguf --target-bpw 8 --save-recipe mine.toml",
    ),
    "nothing to split": Case(
        "ggufsmith split m.gguf s/m --split-max-size 4G", "ggufsmith split m.gguf s/m --split-max-size 500K"
    ),
    "a folder that is there": Case("ggufsmith to-hf m.gguf --outdir model", "ggufsmith to-hf m.gguf --outdir new"),
    "shards that were joined": Case("ggufsmith inspect parts/joined.gguf"),
    "a page that is not one": Case("ggufsmith inspect m.gguf --html page", "ggufsmith inspect m.gguf --html page.html"),
    "no memory in the budget": Case(
        "ggufsmith batch jobs.toml --max-memory 1M", "ggufsmith batch jobs.toml --max-memory 4G"
    ),
    "no disk in the budget": Case("ggufsmith batch jobs.toml --max-disk 1K", "ggufsmith batch jobs.toml --max-disk 1G"),
    "an adapter to quantize": Case("gguf-convert chat -r q8_0", "gguf-convert model -r q8_0 --lora chat"),
    "an adapter with an adapter": Case("gguf-convert chat --lora chat", "gguf-convert model --lora chat"),
    "an adapter of a model elsewhere": Case("gguf-convert lonely", "gguf-convert lonely --base model"),
    "an adapter that is more than that": Case("gguf-convert grown", "gguf-convert model --lora grown"),
    "a vocabulary and an adapter": Case(
        "gguf-convert model --vocab-only --lora chat", "gguf-convert model --vocab-only"
    ),
    "a vocabulary and a projector": Case(
        "gguf-convert sees --vocab-only --mmproj", "gguf-convert sees --vocab-only --dry-run"
    ),
    "a type for no projector": Case(
        "gguf-convert sees --mmproj-outtype q8_0", "gguf-convert sees --mmproj-outtype q8_0 --mmproj"
    ),
    "a projector of a text model": Case("gguf-convert model --mmproj", "gguf-convert model"),
    "blocks for prediction that are not there": Case("gguf-convert model --mtp only", "gguf-convert model"),
    "a draft without its model": Case("gguf-convert draft", "gguf-convert draft --target deep"),
    "a model to draft for that is not wanted": Case("gguf-convert model --target deep", "gguf-convert model"),
    "a draft for a draft": Case("gguf-convert draft --target draft", "gguf-convert draft --target deep"),
    "a projector of a model that is not known to see": Case("gguf-convert claims --mmproj", "gguf-convert claims"),
    "a projector of a model that never saw": Case("gguf-convert reads --mmproj", "gguf-convert reads"),
    "a projector of a model that lost its eyes": Case("gguf-convert blind --mmproj", "gguf-convert blind"),
    "a vocabulary to quantize": Case("gguf-convert model --vocab-only -r q8_0", "gguf-convert model --vocab-only"),
    "one file of a checkpoint": Case("gguf-convert model/model.safetensors"),
    "one file in a folder that has to be quoted": Case("""gguf-convert "it's a model/model.safetensors\""""),
    "no number of bits": Case("gguf-quant small.gguf --target-bpw 0", "gguf-quant small.gguf --target-bpw 4.25"),
    "weights too large": Case("gguf-convert large --outtype f16", "gguf-convert large --outtype bf16", work=True),
    "weights too large for a checkpoint": Case(
        "ggufsmith to-hf large.gguf --dtype float16 --outdir new",
        "ggufsmith to-hf large.gguf --dtype bfloat16 --outdir new",
        work=True,
    ),
    "the type of a file": Case("gguf-convert m.gguf --outtype auto", "gguf-convert m.gguf --recipe copy"),
    "a file to convert": Case("gguf-convert m.gguf", "gguf-convert m.gguf --recipe q8_0"),
    "a file to convert back": Case("gguf-convert m.gguf", "ggufsmith to-hf m.gguf --outdir new"),
    "all recipes": Case("gguf-convert m.gguf", "ggufsmith recipes"),
    "every entry left out": Case(
        "gguf-quant m.gguf -r q4_0 --imatrix i.gguf --exclude-weights blk", "gguf-quant m.gguf -r q4_0"
    ),
    "an entry without counts": Case(
        "gguf-quant small.gguf -r q4_0 --imatrix uncounted.gguf",
        "gguf-quant small.gguf -r q4_0 --imatrix uncounted.gguf --exclude-weights blk.0.attn_q.weight",
    ),
    "sums without counts": Case(
        "gguf-quant small.gguf -r q4_0 --imatrix lonely.gguf", "ggufsmith imatrix --in i.gguf -o new.gguf", work=True
    ),
    "a model as an importance matrix": Case(
        "gguf-quant m.gguf -r q4_0 --imatrix m.gguf", "ggufsmith imatrix --in i.gguf -o new.gguf", work=True
    ),
    "a text as an importance matrix": Case(
        "gguf-quant m.gguf -r q4_0 --imatrix old.toml", "ggufsmith imatrix --in i.gguf -o new.gguf", work=True
    ),
    "a model to add": Case(
        "ggufsmith imatrix --in m.gguf -o new.gguf", "ggufsmith imatrix --in i.gguf -o new.gguf", work=True
    ),
    "an importance matrix as a model": Case("gguf-quant i.gguf -r q4_0", "gguf-quant m.gguf -r q4_0 --imatrix i.gguf"),
    "a GGUF adapter as a model": Case("gguf-quant chat.gguf -r q8_0", "gguf-convert model --lora chat"),
    "a budget too small": Case(
        "gguf-quant small.gguf --target-bpw 1", "gguf-quant small.gguf --target-bpw 2.5 --imatrix small.imatrix.gguf"
    ),
    "quantized a second time": Case("gguf-quant q8.gguf -r q4_0", "gguf-quant q8.gguf -r q4_0 --allow-requantize"),
    "strict": Case("gguf-quant narrow.gguf -r q4_K_M --strict", "gguf-quant narrow.gguf -r q4_K_M"),
    "strict, with a type that fits": Case(
        "gguf-quant narrow.gguf -r q4_K_M --strict", "gguf-quant narrow.gguf -r q4_K_M --strict --tensor-type '.*=q4_0'"
    ),
    "a recipe that needs importance": Case(
        "gguf-quant small.gguf -r iq2_xxs", "gguf-quant small.gguf -r iq2_xxs --imatrix small.imatrix.gguf"
    ),
    "importance for a part": Case(
        "gguf-quant small.gguf -r iq2_xxs --imatrix part.gguf",
        "gguf-quant small.gguf -r iq2_xxs --imatrix part.gguf --tensor-type '.*=q4_0'",
    ),
    "no such tensor": Case(
        "gguf-quant m.gguf -r q4_0 --tensor-type nothing=q8_0", "gguf-quant m.gguf -r q4_0 --dry-run"
    ),
    "no such tensor in a folder": Case(
        "gguf-convert model -r q4_0 --tensor-type nothing=q8_0", "gguf-convert model -r q4_0 --dry-run"
    ),
    "rows that do not fit": Case(
        "gguf-quant narrow.gguf -r q1_0", "gguf-quant narrow.gguf -r q1_0 --tensor-type '.*=q4_0'"
    ),
    "no such recipe": Case("gguf-quant m.gguf -r q9_9", "ggufsmith recipes"),
    "one name for several": Case(
        "gguf-quant m.gguf -r q4_0 -r q8_0 -o x.gguf", "gguf-quant m.gguf -r q4_0 -r q8_0 --outdir new"
    ),
    "a budget and a recipe": Case("gguf-quant m.gguf -r q4_0 --target-bpw 8", "gguf-quant m.gguf -r q4_0"),
    "a table and a recipe": Case(
        "gguf-quant m.gguf -r q4_0 --sensitivity m.json", "gguf-quant m.gguf --match q4_0 --sensitivity m.json"
    ),
    "a table and fewer layers": Case(
        "gguf-quant m.gguf --match q4_0 --sensitivity m.json --prune-layers 0", "gguf-quant m.gguf --match q4_0"
    ),
    "entries of nothing": Case(
        "gguf-quant m.gguf -r q4_0 --include-weights blk",
        "gguf-quant m.gguf -r q4_0 --include-weights blk --imatrix i.gguf",
    ),
    "options without a recipe": Case("gguf-quant m.gguf --pure", "gguf-quant m.gguf --pure --recipe q4_K_M"),
    "first shard of one": Case(
        "gguf-quant m.gguf -r q8_0 --no-tensor-first-split",
        "gguf-quant m.gguf -r q8_0 --no-tensor-first-split --split-max-size 500K",
    ),
    "a folder to quantize": Case("gguf-quant model -r q8_0", "gguf-convert model -r q8_0"),
    "a pre-tokenizer of another kind": Case("gguf-convert model --pre qwen2", "gguf-convert model"),
    "windows of nothing": Case(
        "gguf-quant m.gguf -r q4_0 --imatrix-chunks 9", "gguf-quant m.gguf -r q4_0 --imatrix auto --imatrix-chunks 9"
    ),
    "nothing to keep": Case("gguf-quant m.gguf -r q4_0 --keep-imatrix", "gguf-quant m.gguf -r q4_0"),
    "nothing to make an importance matrix of": Case(
        "ggufsmith imatrix -o new.gguf", "ggufsmith imatrix --in i.gguf -o new.gguf", work=True
    ),
    "options about running without a model": Case(
        "ggufsmith imatrix --in i.gguf --text t.j2 -o new.gguf", "ggufsmith imatrix --in i.gguf -o new.gguf", work=True
    ),
    "a format of nothing": Case(
        "ggufsmith imatrix --in i.gguf --show-statistics --format dat",
        "ggufsmith imatrix --in i.gguf --show-statistics --format dat -o new.dat",
        work=True,
    ),
    "entries that cannot be added": Case(
        "ggufsmith imatrix --in uncounted.gguf -o new.gguf",
        "gguf-quant small.gguf -r q4_0 --imatrix uncounted.gguf --exclude-weights blk.0.attn_q.weight",
    ),
    "a revision of a folder": Case("gguf-convert model --revision main", "gguf-convert model"),
    "an unknown pre-tokenizer": Case("gguf-convert odd", "gguf-convert odd --pre llama-bpe"),
}
ROOT = Path(__file__).parents[2]
HUB = "tests/convert/hub/test_download.py::"
WEIGHED = "tests/conformance/test_imatrix.py::test_llama_quantize_and_we_make_the_same_of_it"
TABLE = "tests/conformance/test_sensitivity.py::test_the_command_writes_a_table_for_the_option"
RUN = "tests/conformance/test_imatrix_run.py::"
JUDGED = "tests/conformance/test_perplexity.py::test_a_recipe_is_judged_as_the_file_that_it_writes"
EVAL = "tests/cli/test_eval_command.py::"
# The beginnings of texts whose advice is followed by a test elsewhere.
TARGETS = "tests/conformance/test_targets.py::"
ELSEWHERE = {
    "Name the model that the draft was trained for": TARGETS + "test_a_larger_model_that_the_draft_was_not_trained_for",
    "Name the model that it was trained for": TARGETS + "test_the_vocabulary_and_the_hidden_states_fit_the_draft",
    "Name the folder of the larger model, on this": TARGETS + "test_what_is_not_the_folder_of_a_model",
    "transformers adds the model's adapter where": (
        "tests/convert/lora/test_lora_export.py::test_an_adapter_alone_becomes_a_gguf_adapter"
    ),
    "the finished part is kept": "tests/container/test_resume.py::test_interrupted",
    "Allow larger shards": "tests/container/test_shards.py::test_a_plan_is_whole",
    "{count} weights are equivalent": "tests/convert/dequantize/test_sources_exact.py::test_symmetric_gptq_is_q4_0",
    "{_few(adapters)} is an adapter": "tests/cli/test_lora_commands.py::test_the_report_says_what_was_merged",
    "{file.variant.name}: the file stores no token": "tests/cli/test_fromfile.py::test_the_vocabulary_of_a_folder",
    "ggml files store no token scores": "tests/cli/test_fromfile.py::test_the_vocabulary_of_a_folder",
    "assumed {": "tests/cli/test_fromfile.py::test_an_old_file_becomes_gguf_with_its_own_weights",
    "Convert without --stream and": HUB + "test_pickled_weights_where_there_are_no_others",
    "Convert without --stream.": "tests/convert/hub/test_streaming.py::test_recipes_from_a_stream",
    "Free some space": "tests/convert/hub/test_streaming.py::test_recipes_from_a_stream",
    "Convert the model again without them: gguf-convert --mtp": (
        "tests/conformance/test_hf_folders.py::test_every_line_of_the_zoo_comes_back"
    ),
    "Make them shorter, with --context": (
        "tests/conformance/test_forward.py::test_windows_longer_than_the_positions_of_the_model"
    ),
    "Log in, or pass --token.": HUB + "test_a_gated_model_needs_a_token_that_only_the_hub_sees",
    "log in with `hf auth": HUB + "test_a_gated_model_needs_a_token_that_only_the_hub_sees",
    "Set MODELSCOPE_API_TOKEN": "tests/conformance/test_modelscope.py::test_the_token_is_sent",
    "Name a branch, a tag or a commit": "tests/convert/hub/test_names.py::test_revisions",
    "pip install --upgrade 'ggufsmith[": "tests/cli/test_advice.py::test_what_is_to_be_installed_exists",
    "Make one for this model: ggufsmith imatrix": WEIGHED,
    "`ggufsmith sensitivity MODEL` makes one.": TABLE,
    "Make one of this model with `ggufsmith sensitivity`": TABLE,
    "Choose types by --recipe": "tests/conformance/test_backward.py::test_blocks_that_are_used_several_times",
    "Add --calibrate.": "tests/conformance/test_calibrated.py::test_llama_cpp_runs_the_file",
    "Every weight is finite, but some": RUN + "test_where_numbers_stop_being_finite",
    "Find the block in which they begin": RUN + "test_where_numbers_stop_being_finite",
    "Pass files or folders with --text.": "tests/evaluate/test_windows.py::test_other_contradictions",
    ", or --context {": "tests/evaluate/test_windows.py::test_texts_that_are_too_short_are_named_with_their_tokens",
    "Pass --chunks {": "tests/evaluate/test_windows.py::test_the_first_chunks_in_fair_shares",
    "Leave out --card, ": JUDGED,
    "Name another file with --csv.": EVAL + "test_no_output_is_another_or_what_somebody_else_wrote",
    "Choose another name, or leave out --no-overwrite": EVAL + "test_no_output_is_another_or_what_somebody_else_wrote",
    "Leave out --json, or name a file with --csv.": EVAL + "test_numbers_that_nobody_would_see_are_not_measured",
    "Name a file for the numbers with --csv": EVAL + "test_numbers_that_nobody_would_see_are_not_measured",
    "{keep}, or leave out --quiet.": EVAL + "test_numbers_that_nobody_would_see_are_not_measured",
    "Name GGUF files, or recipes with --recipe": JUDGED,
    "Add --recipe, or leave out --imatrix.": JUDGED,
    "Write the files first, or leave out --engine": JUDGED,
    "pip install llama-cpp-python, or leave out": JUDGED,
    "Leave out --engine llama.cpp to measure the": "tests/evaluate/test_engine.py::test_a_process_that_is_ended",
    "{choice(there)} Leaving --device out": JUDGED,
    "Measure this model with `ggufsmith eval`": "tests/cli/test_which.py::test_what_was_measured_decides",
    "Leave out --modelfile, or pass the projector": "tests/cli/test_modelfile.py::test_a_model_that_sees",
    "Name the file that gguf-convert --mmproj wrote": "tests/cli/test_modelfile.py::test_a_model_that_sees",
    "Name a file, or leave out --card": (
        "tests/api/test_pushing.py::test_what_is_wrong_here_is_said_before_what_is_wrong_there"
    ),
    "The file is a projector. Pass the model": (
        "tests/cli/test_verify.py::test_a_projector_and_a_source_that_does_not_see"
    ),
    "Write one with `ggufsmith eval`": "tests/cli/test_which.py::test_what_is_wrong",
    "no recipe fits; a shorter --context": "tests/cli/test_which.py::test_the_cache_follows_context_and_type",
    "Log in with `hf auth login`, set HF_TOKEN, or pass --token; the": "tests/api/test_pushing.py::test_the_command",
    "Check the name, or add --create": "tests/api/test_pushing.py::test_a_run_is_published_when_it_is_verified",
    "Choose another repository, or add --replace": (
        "tests/api/test_pushing.py::test_files_with_other_content_are_not_replaced_unasked"
    ),
    "Quantize without an importance matrix, and compare vectors": (
        "tests/conformance/test_encoders.py::test_what_makes_no_sense_for_an_encoder_is_refused_and_the_rest_fits_it"
    ),
    "Leave it out. q8_0 and the other recipes": (
        "tests/cli/test_projectors_unmeasured.py::test_a_text_measures_no_projector"
    ),
    "pip install 'ggufsmith[": "tests/cli/test_advice.py::test_what_is_to_be_installed_exists",
    "Use a part of it, with the option": "tests/convert/test_resume_settings.py::test_an_option_of_quant",
}
# Those that no test can follow: the command is another program's, and asks a server or a person; or it is no command.
OTHERS = (
    "Convert it with gguf-py's gguf-convert-endian",
    "Install a release of transformers that has it",
    "pip install pyarrow",
    "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install",
    "Leave out --calibrate, and report it.",  # of what should be impossible
    "this checkpoint has {found}, which --mmproj",  # no error
    "the multi-token prediction head, as --mtp drop asks",  # a reason
    "ggufsmith {which} text",  # a name
    "--resume needs locks",
    "hf download {id}",
    "modelscope download",
    "Download one of the two",
    "Run `git lfs pull`.",
    "llama.cpp takes it unchanged, with --control-vector",
    "llama.cpp does not support dynamic NTK",
    "Convert the original model again. If the model is newer",
    "Quantize it without --prune-layers.",  # an encoder and a decoder, for which no fixture is complete
)
WITHOUT_JSON = ("ggufsmith card", "ggufsmith modelfile", "ggufsmith recipes")
READS = ("ggufsmith inspect", "ggufsmith recipes", "ggufsmith card", "ggufsmith modelfile")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, files and adapters of every kind that is named above."""
    home = tmp_path_factory.mktemp("m")
    for name in ("cards", "recorded", "parts"):
        (home / name).mkdir()
    write_checkpoints(home)
    write_adapters(home)
    run(home, "gguf-convert model -o m.gguf")
    run(home, "gguf-convert chat -o chat.gguf")
    run(home, "gguf-convert large --outtype bf16 -o large.gguf")
    run(home, "gguf-quant m.gguf -r q8_0 -o q8.gguf")
    run(home, "gguf-quant m.gguf -r q8_0 -o recorded/m.gguf --provenance")
    run(home, "ggufsmith split m.gguf parts/m --split-max-size 500K")
    shards = sorted((home / "parts").iterdir())
    (home / "parts" / "joined.gguf").write_bytes(b"".join(shard.read_bytes() for shard in shards))
    (home / "cards" / "m.gguf").write_bytes((home / "m.gguf").read_bytes())
    (home / "cards" / "README.md").write_text("mine", encoding="utf-8")
    (home / "cards" / "m.Modelfile").write_text("mine", encoding="utf-8")
    (home / "t.j2").write_text("{{ title }}", encoding="utf-8")
    (home / "old.toml").write_text("mine", encoding="utf-8")
    (home / "jobs.toml").write_text(JOB, encoding="utf-8")
    write_table(home)
    write_small_models(home)
    return home


JOB = "output = 'out'\n[defaults]\nrecipes = 'q8_0'\n[[model]]\nsource = 'model'\n"


def write_table(home: Path) -> None:
    """What types cost m.gguf."""
    with open_gguf(home / "m.gguf") as file:
        shapes = {name: info.shape for name, info in file.tensors.items() if len(info.shape) > 1}
    tensors = {name: TensorSensitivity(shape, {"Q4_K": 0.1, "Q8_0": 0.01}) for name, shape in shapes.items()}
    write_sensitivity(Sensitivity(tensors, "none", 512, ""), home / "m.json")


def write_checkpoints(home: Path) -> None:
    checkpoints.write("llama", home / "model", num_hidden_layers=1)
    shutil.copytree(home / "model", home / "it's a model")
    checkpoints.write("llama", home / "large", num_hidden_layers=1)
    config = json.loads((home / "large" / "config.json").read_text(encoding="utf-8"))
    tensors = checkpoints.tensors_of(config)
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = 0x4790  # 73728 in bfloat16
    checkpoints.write_tensors(tensors, home / "large", "bfloat16")
    checkpoints.write("llama", home / "deep", num_hidden_layers=6)
    eagle3.write(home / "draft", home / "deep")
    seeing.write(home / "sees")
    seeing.write(home / "blind", without="visual")
    seeing.write(home / "reads", without="visual")
    checkpoints.write("llama", home / "claims", num_hidden_layers=1)
    for name, changes in (("reads", {"vision_config": None}), ("claims", {"vision_config": {"depth": 2}})):
        path = home / name / "config.json"
        config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps(config), encoding="utf-8")
    checkpoints.write("llama-3", home / "odd", num_hidden_layers=1)
    tokenizer = home / "odd" / "tokenizer.json"
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    stage = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    stage["Regex"] = stage["Regex"].replace("{1,3}", "{1,4}")
    tokenizer.write_text(json.dumps(content), encoding="utf-8")


def write_adapters(home: Path) -> None:
    adapters.write(home / "model", home / "chat")
    adapters.write(home / "model", home / "lonely", named="nobody/nothing")
    config = json.loads((home / "model" / "config.json").read_text(encoding="utf-8"))
    rows, width = config["vocab_size"] + 3, config["hidden_size"]
    grown = {f"{name}.weight": np.ones((rows, width), np.float32) for name in ("model.embed_tokens", "lm_head")}
    adapters.write(home / "model", home / "grown", whole=grown)


def write_small_models(home: Path) -> None:
    arrays = models.arrays(width=256)
    means = models.importance(arrays)
    models.write_model(home / "small.gguf", width=256)
    models.write_imatrix(home / "small.imatrix.gguf", means)
    first = next(iter(means))
    models.write_imatrix(home / "uncounted.gguf", means, {first: [0.0]})
    models.write_imatrix(home / "part.gguf", {first: means[first]})
    models.write_gguf(home / "lonely.gguf", {}, {f"{first}.in_sum2": models.plain(means[first])})
    models.write_model(home / "narrow.gguf")
    with open_gguf(home / "m.gguf") as gguf:
        shapes = {
            name: info.shape for name, info in gguf.tensors.items() if name.startswith("blk") and len(info.shape) > 1
        }
    models.write_imatrix(home / "i.gguf", {name: np.ones((1, shape[-1]), np.float32) for name, shape in shapes.items()})


@cache
def texts() -> list[messages.Message]:
    """All of the product."""
    return list(messages.messages())


@cache
def failure(name: str, home: Path) -> tuple[int, str]:
    """What the first command of a case says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return tried(CASES[name].typed)


def tried(line: str) -> tuple[int, str]:
    """Exit code, and the whole message of an error, its lines unbroken."""
    program, *words = shlex.split(line)
    machine = [] if line.startswith(WITHOUT_JSON) else ["--json"]
    done = CliRunner().invoke(APPS[program], [*words, *machine], prog_name=program)
    if machine and done.exit_code and done.stdout:
        error = json.loads(done.stdout)
        error = error.get("error") or error["models"][0]["error"]
        return done.exit_code, "\n".join([error["what"], *error["also"], error["fix"] or "", *error.get("notes", [])])
    return done.exit_code, done.stderr


def options_of(line: str) -> set[str]:
    """All that the command of this line has."""
    program, *words = shlex.split(line)
    command: Any = get_command(APPS[program])
    if isinstance(command, typer.core.TyperGroup):
        command = command.commands[words[0]]
    return {name for each in command.params for name in each.opts}


def run(folder: Path, line: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, said = tried(line)
    assert code == 0, said


def advised(case: Case, said: str) -> str:
    """The command of an error, or what its advice makes of the one that was typed."""
    if case.then:
        return case.then
    last = said.splitlines()[-1]
    if commands := re.findall(r"(?:^|: )((?:gguf-convert|gguf-quant|ggufsmith) .+)", last):
        return str(commands[-1])
    (option,) = re.findall(r"(--[a-z-]+ [^ ]+?)[.]?$", last)
    return f"{case.typed} {option}"


@pytest.mark.parametrize("name", CASES)
def test_the_advice_works(name: str, home: Path) -> None:
    case = CASES[name]
    code, said = failure(name, home)
    assert code, "this works as it is"
    then = advised(case, said)
    programs = [word for word in APPS if word in said.splitlines()[-1]]
    strange = set(OPTION.findall(said.splitlines()[-1])) - options_of(case.typed)
    assert programs or not strange, f"an option of another command, which is not named: {strange}"
    named = set(OPTION.findall(said)) | {word for word in APPS if word in said}
    changed = set(shlex.split(case.typed)) ^ set(shlex.split(then))
    spelled = {"-r": "--recipe", "-o": "--outfile"}
    assert named & {spelled.get(word, word) for word in changed} or named & set(case.typed.split()), said
    run(home, then if case.work or then.startswith(READS) else f"{then} --dry-run")


def test_all_advice_is_followed(home: Path) -> None:
    said = [failure(name, home)[1] for name in CASES]
    missing = []
    for message in texts():
        path = message.path.as_posix()
        if (
            message.text == "ggufsmith batch"
            or message.kind not in ("fix", "also", "text")
            or not ADVICE.search(message.text)
            or OTHER.search(path)
        ):
            continue
        pattern = ".*".join(map(re.escape, re.split(r"\{[^{}]*\}", message.text)))
        met = any(re.search(pattern, " ".join(text.split())) for text in said)
        if not met and not message.text.startswith((*ELSEWHERE, *OTHERS)):
            missing.append(f"{path}:{message.line}: {message.text}")
    assert not missing, "\n".join(missing)


# Of texts and importance matrices, which people make themselves.
WITH_NEXT_STEPS = (
    *(f"quantize/imatrix/{name}.py" for name in ("fit", "read", "record", "write")),
    *(f"evaluate/{name}.py" for name in ("texts", "windows", "needed")),
    *(f"calibrate/{name}.py" for name in ("auto", "finite", "fisher", "make", "run")),
    *(f"container/{name}.py" for name in ("apart", "positional", "replace")),
    "api/imatrices.py",
    "api/sensitivities.py",
)


@pytest.mark.parametrize("path", WITH_NEXT_STEPS)
def test_every_error_about_texts_and_importance_has_a_next_step(path: str) -> None:
    classes = {each.__name__ for each in (Failure, *Failure.__subclasses__())}
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes:
            assert any(each.arg == "fix" for each in node.keywords), f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_the_tests_elsewhere_exist() -> None:
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), place


def test_what_is_to_be_installed_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {each for message in texts() for each in re.findall(r"ggufsmith\[(\w+)\]", message.text)}
    assert named and named <= extras.keys()
