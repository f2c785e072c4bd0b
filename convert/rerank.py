"""Qwen3-Reranker: a language model that judges a document by saying yes or no.

Its score is the softmax of two logits, so that its file has the two rows of the head and a prompt in their place. The
checkpoint is that of any Qwen3; that it ranks, its name alone says.

Source: llama.cpp's conversion/qwen.py (Qwen3Model), src/llama-graph.cpp (build_pooling), tools/server.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import MODEL_ARCH, Keys, PoolingType
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.untrusted import read_text
from ggufsmith.container.values import Metadata, strings, u32
from ggufsmith.convert.config import Config
from ggufsmith.convert.plan import Plan, TensorPlan
from ggufsmith.convert.reorder import Gather
from ggufsmith.tokenizer.vocabulary import Vocabulary

NAME = "qwen3-reranker"
ARCHITECTURES = (MODEL_ARCH.QWEN3,)
LABELS = ("yes", "no")  # the rows of the head, in llama.cpp's order
HEAD, EMBEDDING, SCORES = "output.weight", "token_embd.weight", "cls.output.weight"
TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@dataclass(frozen=True)
class ChosenRows(Gather):
    """These rows of a matrix, in this order."""

    numbers: tuple[int, ...]

    def order(self, rows: int) -> NDArray[np.int64]:
        if not all(0 <= number < rows for number in self.numbers):
            raise ValueError(f"rows {self.numbers} are not within {rows}")
        return np.array(self.numbers, np.int64)


def ranks(folder: Path, config: Config, plan: Plan) -> bool:
    """Whether a folder holds a Qwen3-Reranker: by its own name, that in config.json, or the heading of its README."""
    if plan.architecture.arch not in ARCHITECTURES:
        return False
    named = config.first("_name_or_path")
    readme = folder / "README.md"
    text = read_text(readme, inside=folder) if readme.is_file() else ""
    return NAME in folder.name.lower() or NAME in str(named or "").lower() or f"# {NAME}" in text.lower()


def with_scores(plan: Plan, config: Config, tokens: Mapping[str, int]) -> Plan:
    """The plan with the two rows instead of the head. tokens: text -> id. Unsupported: without the words."""
    missing = [text for text in LABELS if text not in tokens]
    if missing:
        raise Unsupported(f"the vocabulary has no token {missing[0]!r}, by whose probability a reranker judges")
    by_name = {output.name: output for output in plan.outputs}
    tied = bool(config.first("tie_word_embeddings")) or HEAD not in by_name
    (source,) = by_name[EMBEDDING if tied else HEAD].sources
    op = ChosenRows(tuple(tokens[text] for text in LABELS))
    scores = TensorPlan(SCORES, op.shape(source.shape), op, (source,), False)
    kept = [output for output in plan.outputs if output.name != HEAD or tied]
    name = plan.architecture.name
    keys: Metadata = {
        Keys.LLM.POOLING_TYPE.format(arch=name): u32(int(PoolingType.RANK)),
        Keys.Classifier.OUTPUT_LABELS.format(arch=name): strings(LABELS),
    }
    note = f"a reranker: {SCORES} has the rows of {' and '.join(LABELS)}, and llama.cpp gives their probabilities"
    return replace(plan, outputs=(*kept, scores), metadata={**plan.metadata, **keys}, notes=(*plan.notes, note))


def with_prompt(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with the prompt in which llama.cpp puts query and document."""
    return replace(vocabulary, chat_templates={**vocabulary.chat_templates, "rerank": TEMPLATE})
