"""Records, fixtures and the harness of tests/conformance belong together: none without the others."""

import subprocess
import sys
from typing import Any

import pytest

import checkpoints
import drafts
import encoder_twins
import encoders
import layout_twins
import mistral
import newest
import targeted
import zoo
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.architectures import ARCHITECTURES
from ggufsmith.convert.by_class import ByClass
from ggufsmith.convert.projectors import PROJECTORS

DRAFTS = {name: draft.model for name, draft in drafts.DRAFTS.items()}
NEWEST = {name: line.model for name, line in newest.NEWEST.items()}
LINES = {**zoo.ZOO, **encoders.ENCODERS, **encoders.BOTH, **DRAFTS, **NEWEST}
TRIED = {
    *(kind.model_class for kind in (*checkpoints.KINDS.values(), *LINES.values())),
    *(line.model_class for line in newest.NEWEST.values()),
    *mistral.CLASSES,
    *(twin.model_class for twin in (*layout_twins.TWINS.values(), *encoder_twins.TWINS.values())),
    *(line.model_class for line in targeted.LINES.values()),
}
# Further names of a class that is tried: earlier spellings, the model without its head, or inside a larger one.
OTHER_NAMES = {
    "BitNetForCausalLM",
    "ChatGLMForConditionalGeneration",
    "JinaBertModel",
    "NeoBERT",
    "Gemma3ForConditionalGeneration",
    "Gemma3nForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "LLaMAForCausalLM",
    "MiniMaxM3SparseForCausalLM",
    "Lfm2BidirectionalModel",
    "LlamaModel",
    "MistralModel",
    "ExaoneMoEForCausalLM",
    "KimiLinearModel",
    "LFM2ForCausalLM",
    "Llama4ForConditionalGeneration",
    "OLMoForCausalLM",
    "PhiMoEForCausalLM",
    "Qwen2Model",
    "Qwen3Model",
    "Eagle3LlamaForCausalLM",
    "Eagle3DraftModel",
    "DSparkDraftModel",
    "Lfm2DSparkDraftModel",
    "LingDSparkModel",
    "DistilBertForMaskedLM",
    "StableLMEpochForCausalLM",
    "T5WithLMHeadModel",
    "UMT5Model",
    "Ernie4_5_ForCausalLM",
    "BloomModel",
    "KimiK25ForConditionalGeneration",
    "Dots3NoteForConditionalGeneration",
    "Dots3NoteTextForCausalLM",
    "BailingMoeV3ForCausalLM",
    "MPTForCausalLM",
    "RWForCausalLM",
    "ChameleonForCausalLM",
    "Step3p5ForCausalLM",
    "LightOnOCRForConditionalGeneration",
    "Qwen2_5OmniModel",
}


@pytest.mark.parametrize("record", ARCHITECTURES.records(), ids=lambda record: record.classes[0])
def test_every_class_of_a_record_is_tried(record: Architecture) -> None:
    assert record.classes[0] in TRIED, "add a line to fixtures/zoo.py"
    assert not [name for name in record.classes if name not in TRIED | OTHER_NAMES]
    assert record.models, "say what people call these models"


def test_every_line_has_a_record() -> None:
    assert not [name for name, line in LINES.items() if line.model_class not in ARCHITECTURES]
    assert ARCHITECTURES.keys() >= OTHER_NAMES


@pytest.mark.parametrize(
    ("table", "module"), [(table, module) for table in (ARCHITECTURES, PROJECTORS) for module in table.modules]
)
def test_modules_are_listed_with_the_classes_of_their_records(table: ByClass[Any], module: str) -> None:
    assert [name for record in table.of_module(module) for name in record.classes] == table.modules[module].split()


def test_a_conversion_imports_the_records_of_its_class_alone() -> None:
    code = """if True:
        import sys
        from ggufsmith.convert.architectures import ARCHITECTURES
        from ggufsmith.convert.projectors import PROJECTORS
        ARCHITECTURES["LlamaForCausalLM"]
        for table in ARCHITECTURES, PROJECTORS:
            print([module for module in table.modules if f"{table.package}.{module}" in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines() == ["['classic']", "[]"]


def test_no_two_records_claim_a_class() -> None:
    classes = [name for record in ARCHITECTURES.records() for name in record.classes]
    assert len(classes) == len(set(classes))


@pytest.mark.parametrize("name", LINES)
def test_a_looser_bound_has_its_reason(name: str) -> None:
    line = LINES[name]
    assert (line.nmse > 1e-9) == bool(line.why)
