"""Vocabularies that only code of the checkpoint reads: against the converter, which executes it, and against tiktoken.

The code in the folders here is ours, and does what the published code does as far as the converter asks.
"""

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizer_oracles as oracles
from gguf.constants import Keys

import ranks as lists
import reference
import vocabulary_parts
from ggufsmith.container.reader import open_gguf
from ggufsmith.tokenizer.pretokenizers import KIMI, LLAMA3, QWEN2
from ggufsmith.tokenizer.read import read_vocabulary
from vocabulary_parts import Files

pytestmark = pytest.mark.conformance

KEY = Keys.Tokenizer
CLASS = """
import base64
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer


class Tokenizer(PreTrainedTokenizer):
    def get_vocab(self):
        return {self._convert_id_to_token(token): token for token in range(self.vocab_size)}

    def _tokenize(self, text, **kwargs):
        return []

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)


class QWenTokenizer(Tokenizer):
    vocab_files_names = {"vocab_file": "qwen.tiktoken"}

    def __init__(self, vocab_file, **kwargs):
        lines = (line.split() for line in open(vocab_file, "rb").read().splitlines())
        self.mergeable_ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{k}|>" for k in range(205))]
        self.special_tokens = {text: len(self.mergeable_ranks) + k for k, text in enumerate(special)}
        self.texts = {rank: token for token, rank in [*self.mergeable_ranks.items(), *self.special_tokens.items()]}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.texts)

    def _convert_id_to_token(self, token):
        return self.texts[token]


class TikTokenTokenizer(Tokenizer):
    vocab_files_names = {"vocab_file": "tiktoken.model"}

    def __init__(self, vocab_file, added_tokens_decoder=None, eos_token="[EOS]", **kwargs):
        lines = (line.split() for line in open(vocab_file, "rb").read().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        names = {token: added.content for token, added in added_tokens_decoder.items()}
        behind = range(len(ranks), len(ranks) + 256)
        self.special_tokens = {names.get(token, f"<|reserved_token_{token}|>"): token for token in behind}
        self.texts = {rank: token for token, rank in [*ranks.items(), *self.special_tokens.items()]}
        self.model = type("Model", (), {"_mergeable_ranks": ranks})
        self.eos_id = self.special_tokens[str(eos_token)]
        super().__init__(eos_token=eos_token, **kwargs)

    @property
    def vocab_size(self):
        return len(self.texts)

    def _convert_id_to_token(self, token):
        return self.texts[token]


class HYTokenizer(Tokenizer):
    vocab_files_names = {"vocab_file": "hy.tiktoken"}

    def __init__(self, vocab_file, **kwargs):
        tokens = dict.fromkeys(base64.b64decode(line.split()[0]) for line in open(vocab_file, "rb").read().splitlines())
        self.mergeable_ranks = {token: rank for rank, token in enumerate(tokens)}
        special = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"]
        special += [f"<|extra_{k}|>" for k in range(205)]
        self.special_tokens = {text: len(self.mergeable_ranks) + k for k, text in enumerate(special)}
        self.texts = {rank: token for token, rank in [*self.mergeable_ranks.items(), *self.special_tokens.items()]}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.texts)

    def _convert_id_to_token(self, token):
        return self.texts[token]


class Pieces:
    def __init__(self, path):
        self.sp_model = SentencePieceProcessor(path)


class ChatGLMTokenizer(Tokenizer):
    vocab_files_names = {"vocab_file": "tokenizer.model"}

    def __init__(self, vocab_file, **kwargs):
        self.tokenizer = Pieces(vocab_file)
        special = "[MASK] [gMASK] [sMASK] sop eop <|system|> <|user|> <|assistant|> <|observation|>".split()
        pieces = self.tokenizer.sp_model.vocab_size()
        self.special = {pieces + k: text for k, text in enumerate(special)}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return self.tokenizer.sp_model.vocab_size() + len(self.special)

    def _convert_id_to_token(self, token):
        if token < 3 or token >= self.vocab_size:
            return ""
        return self.special.get(token) or self.tokenizer.sp_model.IdToPiece(token)
"""
KIMI_SHAPE = {
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "q_lora_rank": 32,
    "bos_token_id": 600,
    "eos_token_id": 601,
    "pad_token_id": 855,
}
HUNYUAN_SHAPE = {
    "moe_intermediate_size": [64],
    "num_experts": 4,
    "moe_topk": [1],
    "num_shared_expert": [1],
    "rope_scaling": None,
    "bos_token_id": 1,
    "eos_token_id": 603,
    "pad_token_id": 604,
}
PRE = {"DeepseekV3ForCausalLM": "kimi-k2", "HunYuanMoEV1ForCausalLM": "hunyuan"}
FOLDERS = {
    "QWenLMHeadModel": (lists.qwen_ranks, "tokenization_qwen.py", {}),
    "DeepseekV3ForCausalLM": (lists.kimi_ranks, "tokenization_kimi.py", KIMI_SHAPE),
    "HunYuanMoEV1ForCausalLM": (lists.hunyuan_ranks, "tokenization_hy.py", HUNYUAN_SHAPE),
    "ChatGLMModel": (
        lists.chatglm_spm,
        "tokenization_chatglm.py",
        {"_name_or_path": "THUDM/chatglm3-6b", "eos_token_id": 2, "pad_token_id": 0},
    ),
}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_layers": 1,
    "max_position_embeddings": 512,
    "layer_norm_epsilon": 1e-6,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_keys_are_those_of_the_converter(name: str, tmp_path: Path) -> None:
    make, code, more = FOLDERS[name]
    size, files = make()
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    for file, content in {**files, code: CLASS.encode()}.items():
        (folder / file).write_bytes(content)
    spare = 0 if name.startswith("HunYuan") else 8
    config = {"architectures": [name], **SHAPE, **more, "vocab_size": size + spare, "padded_vocab_size": size + spare}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = reference.convert(folder, tmp_path / "theirs.gguf", "--vocab-only", pre=PRE.get(name, "qwen2"), raw=True)
    with open_gguf(path) as file:
        theirs = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    ours = read_vocabulary(folder, config=config, size=None, architecture=name)
    keys = ours.metadata()
    if name == "ChatGLMModel":
        texts, scores = list(theirs[KEY.LIST].data), list(theirs[KEY.SCORES].data)
        assert texts[:3] == ["<unk>", "<bos>", "<eos>"] and ours.tokens[:3] == ("<unk>", "<s>", "</s>")
        assert ours.scores is not None and texts[3:] == list(ours.tokens[3:])
        assert scores[:900] == ours.scores.tolist()[:900]
        # Pieces are called as in tokenizer.model; special tokens have the score that they have everywhere; llama.cpp
        # reads no pre-tokenizer of pieces; the last belongs to the model.
        for key in (KEY.LIST, KEY.SCORES, KEY.PRE, KEY.ADD_BOS):
            keys.pop(key, None), theirs.pop(key, None)
    if name == "HunYuanMoEV1ForCausalLM":  # the converter writes a number that it has in Hunyuan-A13B's own vocabulary
        assert theirs.pop(KEY.BOS_ID).data == 127959
        keys.pop(KEY.BOS_ID)
    assert keys == theirs


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lists.qwen_ranks, QWEN2),
        (lists.glm_ranks, LLAMA3),
        (lists.kimi_ranks, KIMI),
        (lists.hunyuan_ranks, QWEN2),
    ],
    ids=["qwen", "glm", "kimi", "hunyuan"],
)
def test_ids_are_those_of_tiktoken(make: Callable[[], tuple[int, Files]], pattern: str, tmp_path: Path) -> None:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    size, files = make()
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    vocabulary = read_vocabulary(tmp_path, config={}, size=size, architecture="")
    name = next(name for name in files if name.endswith(("tiktoken", ".model")))
    ranks = load_tiktoken_bpe(str(tmp_path / name))
    if name == "hy.tiktoken":
        ranks = {token: rank for rank, token in enumerate(ranks)}
    special = {text: token for token, text in enumerate(vocabulary.tokens) if token >= len(ranks)}
    encoding = tiktoken.Encoding("fixture", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    seeded = random.Random(1)
    letters = [
        chr(code) for code in (*range(32, 127), *range(0xA0, 0x180), *range(0x400, 0x460), 0x4E2D, 0x6587, 0x1F600)
    ]
    texts = [*oracles.PROBES.read_text(encoding="utf-8").splitlines(), *vocabulary_parts.corpus()[:200]]
    texts += ["".join(seeded.choices([*letters, " ", "\n", "ab", "12"], k=40)) for _ in range(300)]
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        for text in texts:
            text = unicodedata.normalize("NFC", text)
            if pattern == KIMI:  # llama.cpp does not split words where the case changes, as Kimi does
                text = text.lower()
            found = llama.encode(text, add_special=False, parse_special=False)
            assert found == encoding.encode(text, disallowed_special=()), text
        for text in ("<|endoftext|>", "a<|endoftext|>b"):
            found = llama.encode(text, add_special=False, parse_special=True)
            assert found == encoding.encode(text, allowed_special="all")


def test_pieces_are_found_as_by_sentencepiece(tmp_path: Path) -> None:
    """ChatGLM 3's own code gives ordinary text to SentencePiece."""
    from sentencepiece import SentencePieceProcessor

    size, files = lists.chatglm_spm()
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    vocabulary = read_vocabulary(tmp_path, config={}, size=size, architecture="ChatGLMModel")
    pieces = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    with oracles.in_llama(vocabulary, tmp_path) as llama:
        for text in vocabulary_parts.corpus()[:200]:
            assert llama.encode(text, add_special=False, parse_special=False) == pieces.encode(text), text
        assert llama.encode("[gMASK]sop<|user|>", add_special=False, parse_special=True)[-3:] == [901, 903, 906]
