"""Records, fixtures and the harness of tests/conformance belong together: none without the others."""

import pytest

import checkpoints
import drafts
import encoders
import layout_twins
import mistral
import newest
import zoo
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.architectures import ARCHITECTURES, BY_CLASS

DRAFTS = {name: draft.model for name, draft in drafts.DRAFTS.items()}
NEWEST = {name: line.model for name, line in newest.NEWEST.items()}
LINES = {**zoo.ZOO, **encoders.ENCODERS, **encoders.BOTH, **DRAFTS, **NEWEST}
TRIED = {
    *(kind.model_class for kind in (*checkpoints.KINDS.values(), *LINES.values())),
    *(line.model_class for line in newest.NEWEST.values()),
    *mistral.CLASSES,
    *(twin.model_class for twin in layout_twins.TWINS.values()),
}
# Further names of a class that is tried: earlier spellings, the model without its head, or inside a larger one.
OTHER_NAMES = {
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
}


@pytest.mark.parametrize("record", ARCHITECTURES, ids=lambda record: record.classes[0])
def test_every_class_of_a_record_is_tried(record: Architecture) -> None:
    assert record.classes[0] in TRIED, "add a line to fixtures/zoo.py"
    assert not [name for name in record.classes if name not in TRIED | OTHER_NAMES]
    assert record.models, "say what people call these models"


def test_every_line_has_a_record() -> None:
    assert not [name for name, line in LINES.items() if line.model_class not in BY_CLASS]
    assert BY_CLASS.keys() >= OTHER_NAMES


def test_no_two_records_claim_a_class() -> None:
    classes = [name for record in ARCHITECTURES for name in record.classes]
    assert len(classes) == len(set(classes))


@pytest.mark.parametrize("name", LINES)
def test_a_looser_bound_has_its_reason(name: str) -> None:
    line = LINES[name]
    assert (line.nmse > 1e-9) == bool(line.why)
