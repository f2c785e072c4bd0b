"""Model cards: what they say, and that no header can break out of its place in them."""

from pathlib import Path

import pytest
from gguf.constants import LlamaFileType

from ggufsmith.container.values import Metadata, string, strings, u32
from ggufsmith.naming.card import read_card
from ggufsmith.naming.cardfacts import CardFile, Publisher, unfit_share
from ggufsmith.naming.modelcard import model_card
from ggufsmith.naming.prompts import prompt_format
from ggufsmith.naming.uses import use_of

META: Metadata = {
    "general.architecture": string("qwen2"),
    "general.name": string("Tiny Qwen"),
    "general.size_label": string("7B"),
    "general.license": string("other"),
    "general.license.name": string("tongyi-qianwen"),
    "general.license.link": string("https://example.org/LICENSE"),
    "general.languages": strings(["en", "no"]),
    "general.tags": strings(["chat", "text-generation"]),
    "general.dataset.0.repo_url": string("https://huggingface.co/org/data"),
    "qwen2.context_length": u32(32768),
    "tokenizer.chat_template": string("{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>{% endfor %}"),
}
FILES = [
    CardFile(("Tiny-F16.gguf",), 14_000_000_000, 16.01, "F16", ("a" * 64,)),
    CardFile(("Tiny-Q4_K_M.gguf",), 4_300_000_000, 4.85, "Q4_K_M", ("b" * 64,)),
    CardFile(("Tiny-Q8_0-00001-of-00002.gguf", "Tiny-Q8_0-00002-of-00002.gguf"), 75 * 10**8, 8.5, "Q8_0", ("c", "d")),
]


def card(changes: Metadata | None = None, files: list[CardFile] = FILES, publisher: Publisher | None = None) -> str:
    return model_card({**META, **(changes or {})}, files, publisher or Publisher(), version="1.2.3")


def test_front_matter_as_the_hub_reads_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        card(publisher=Publisher(base_model="Qwen/Tiny", author="me")), encoding="utf-8"
    )
    notes: list[str] = []
    assert read_card(tmp_path, notes.append) == {
        "base_model": "Qwen/Tiny",
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "tongyi-qianwen",
        "license_link": "https://example.org/LICENSE",
        "language": ["en", "no"],
        "datasets": ["org/data"],
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "quantized_by": "me",
        "tags": ["gguf", "quantized", "chat"],
    }
    assert notes == []


def test_the_model_it_was_made_from() -> None:
    assert "base_model: org/tiny" in card({"general.source.repo_url": string("https://huggingface.co/org/tiny")})
    assert "base_model" not in card()
    assert "base_model" not in card({"general.repo_url": string("https://example.org/org/tiny")})


def test_the_page() -> None:
    text = card()
    assert "# Tiny Qwen GGUF" in text
    assert "7B parameters and a context of 32768 tokens" in text
    assert "## Prompt template: ChatML" in text
    assert "<|im_start|>system\n{system_prompt}<|im_end|>" in text
    assert text.index("`Tiny-Q4_K_M.gguf` | Q4_K_M | 4.85 | 4.30 GB |") < text.index(
        "`Tiny-F16.gguf` | F16 | 16.01 | 14.00 GB"
    )
    assert "`Tiny-Q8_0-00001-of-00002.gguf` and 1 more" in text
    assert f"{'b' * 64}  Tiny-Q4_K_M.gguf\nc  Tiny-Q8_0-00001-of-00002.gguf\nd  Tiny-Q8_0-00002-of-00002.gguf" in text
    assert "llama-cli -m Tiny-Q4_K_M.gguf" in text
    assert "FROM ./Tiny-Q4_K_M.gguf" in text
    assert "Llama(model_path='Tiny-Q4_K_M.gguf')" in text
    assert "- imatrix" in card({"quantize.imatrix.file": string("x")})


def test_published() -> None:
    text = card(publisher=Publisher(repo="me/Tiny-GGUF"))
    assert "llama-cli -hf me/Tiny-GGUF:Q4_K_M" in text
    assert "ollama run hf.co/me/Tiny-GGUF:Q4_K_M" in text
    assert "Llama.from_pretrained('me/Tiny-GGUF', filename='Tiny-Q4_K_M.gguf')" in text
    assert "[`Tiny-Q4_K_M.gguf`](https://huggingface.co/me/Tiny-GGUF/blob/main/Tiny-Q4_K_M.gguf)" in text
    assert "blob/main/Tiny-Q8_0/Tiny-Q8_0-00001-of-00002.gguf)" in text  # shards have a folder of their own
    assert "hf download me/Tiny-GGUF Tiny-Q4_K_M.gguf --local-dir ." in text
    assert "search for `me/Tiny-GGUF`" in text
    assert "hf download" not in card() and "LM Studio" not in card()


def test_only_shards() -> None:
    text = card(files=FILES[2:])
    assert "keep them in one folder" in text
    assert "ggufsmith merge Tiny-Q8_0-00001-of-00002.gguf model.gguf" in text


def test_published_shards() -> None:
    text = card(files=FILES[2:], publisher=Publisher(repo="me/Tiny-GGUF"))
    assert "hf download me/Tiny-GGUF --include 'Tiny-Q8_0/*' --local-dir ." in text
    first, second = (f"Tiny-Q8_0/{name}" for name in FILES[2].names)
    assert f"filename={first!r}, additional_files=[{second!r}])" in text
    assert "ollama run hf.co" not in text  # it refuses shards
    assert f"ggufsmith merge {first} model.gguf" in text and "FROM ./model.gguf" in text


def test_the_title_is_that_of_the_original_model() -> None:
    odd = {"general.name": string("Checkpoint 4711")}
    assert "# Tiny GGUF" in card(odd, publisher=Publisher(base_model="Qwen/Tiny"))
    assert "# Checkpoint 4711 GGUF" in card(odd)


ADAPTER: Metadata = {
    "general.type": string("adapter"),
    "general.name": string("My Adapter"),
    "general.architecture": string("llama"),
    "general.base_model.count": u32(1),
    "general.base_model.0.repo_url": string("https://huggingface.co/org/Base-7B"),
}


def test_an_adapter_is_run_on_its_base() -> None:
    files = [CardFile(("My-Adapter-F32-LoRA.gguf",), 10**6, 32.0, "F32")]
    text = model_card(ADAPTER, files, Publisher(), version="1")
    assert "base_model: org/Base-7B\nbase_model_relation: adapter\n" in text
    assert "# My Adapter LoRA GGUF" in text and "- lora" in text
    assert "llama-cli -m base.gguf --lora My-Adapter-F32-LoRA.gguf" in text
    assert "'FROM ./base.gguf' 'ADAPTER ./My-Adapter-F32-LoRA.gguf'" in text
    assert "Llama(model_path='base.gguf', lora_path='My-Adapter-F32-LoRA.gguf')" in text
    assert "-m My-Adapter" not in text and "FROM ./My-Adapter" not in text and "model_path='My-Adapter" not in text
    assert "[org/Base-7B](https://huggingface.co/org/Base-7B), which is called base.gguf" in text


def test_a_model_without_a_template_is_not_asked_to_chat() -> None:
    metadata = {key: value for key, value in META.items() if key != "tokenizer.chat_template"}
    text = model_card(metadata, FILES, Publisher(), version="1")
    assert "create_chat_completion" not in text and "--jinja" not in text and "llama-cli" not in text
    assert "llama-completion -m Tiny-Q4_K_M.gguf -no-cnv -p 'Once upon a time'" in text
    assert "no chat template" in text


@pytest.mark.parametrize(
    ("tags", "task"),
    [
        (["sentence-similarity", "mteb"], "sentence-similarity"),
        (["text-generation"], "feature-extraction"),
        ([], "feature-extraction"),
    ],
)
def test_an_embedding_model(tags: list[str], task: str) -> None:
    text = card({"qwen2.pooling_type": u32(3), "general.tags": strings(tags)})
    assert f"pipeline_tag: {task}\n" in text
    assert "llama-server -m Tiny-Q4_K_M.gguf --embeddings" in text and "embedding=True" in text
    assert "create_chat_completion" not in text and "Ollama" not in text and "Prompt template" not in text


def test_the_task_of_other_models_is_text_generation() -> None:
    assert "pipeline_tag: text-generation\n" in card({"general.tags": strings(["image-text-to-text"])})
    assert "pipeline_tag: text-generation\n" in card({"general.tags": strings(["feature-extraction"])})


def test_a_draft_runs_beside_a_larger_model() -> None:
    text = card({"general.architecture": string("eagle3"), "tokenizer.chat_template": string("{{ x }}")})
    assert "llama-server -m MODEL.gguf -md Tiny-Q4_K_M.gguf --spec-type draft-eagle3" in text
    assert "called MODEL.gguf here" in text and "llama-cli" not in text and "Ollama" not in text


def test_a_vocabulary_is_not_run() -> None:
    text = card(files=[CardFile(("Tiny-vocab.gguf",), 10_000, 0.0, "F16")])
    assert "How to run" not in text and "Ollama" not in text and "pipeline_tag" not in text
    assert "cannot be run" in text and "| F16 |" not in text


def test_the_importance_matrix_is_named_whichever_file_has_it() -> None:
    plain = CardFile(("a-Q8_0.gguf",), 9, 8.5, "Q8_0")
    weighted = CardFile(("a-IQ2_XS.gguf",), 3, 2.4, "IQ2_XS", imatrix=("calibration_v5.txt", 128))
    text = card(files=[plain, weighted])
    assert "- imatrix" in text
    assert "All files, but Q8\\_0, were made with an importance matrix of `calibration_v5.txt`, 128 chunks." in text
    assert "importance matrix" not in card()


def test_a_file_is_described_by_the_types_that_it_has() -> None:
    """Rows of 576 do not fit blocks of 256: what is called Q2_K has another type, and 5.14 bits."""
    file = CardFile(("a-Q2_K.gguf",), 9, 5.14, "Q2_K", main="Q4_0", unfit=0.87)
    text = card(files=[file])
    assert "87 % of its weights do not fit Q2_K" in text and "Strong loss" not in text
    assert unfit_share("Q2_K", [(100, 576), (100, 256), (576,)]) == pytest.approx(576 / 832)
    assert unfit_share("Q4_K_M", [(100, 512)]) == unfit_share("Q8_0", [(100, 576)]) == unfit_share(None, []) == 0
    assert unfit_share("IQ2_M", [(1, 32)]) == 1 and unfit_share("IQ4_NL", [(1, 32)]) == 0


def test_who_quantized_is_taken_from_the_files() -> None:
    file = CardFile(("a-Q8_0.gguf",), 9, 8.5, "Q8_0", by="somebody")
    text = card(files=[file])
    assert "quantized_by: somebody\n" in text and "Quantized by somebody." in text
    assert "quantized_by: me\n" in card(files=[file], publisher=Publisher(author="me"))


def test_little_is_known() -> None:
    text = model_card({}, [CardFile(("x.gguf",), 10, 0.0)], Publisher(), version="1")
    assert "# Model GGUF" in text
    assert "Prompt template" not in text
    assert "SHA-256" not in text
    assert "license" not in text


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<|start_header_id|>{{ role }}<|end_header_id|>\n\n{{ content }}<|eot_id|>", "Llama 3"),
        ("{{ '<|im_start|>' + role }}<|im_end|>", "ChatML"),
        ("<｜User｜>{{ x }}<｜Assistant｜>", "DeepSeek"),
        ("<start_of_turn>{{ role }}<end_of_turn>", "Gemma"),
        ("<|user|>\n<|end|>\n<|assistant|>", "Phi-3"),
        ("<|user|>\n</s>\n<|assistant|>", "Zephyr"),
        ("[INST] <<SYS>>{{ x }}<</SYS>> [/INST]", "Llama 2"),
        ("[INST] {{ x }} [/INST]", "Mistral"),
        ("<|start|>assistant<|channel|>final", "Harmony"),
    ],
)
def test_prompt_formats(template: str, name: str) -> None:
    found = prompt_format(template)
    assert found is not None
    assert found[0] == name
    assert "{prompt}" in found[1]


def test_an_unknown_template_is_shown_and_a_long_one_is_not() -> None:
    text = card({"tokenizer.chat_template": string("{# ``` ```` #}{{ messages }}")})
    assert "`````jinja\n{# ``` ```` #}{{ messages }}\n`````" in text
    assert "x" * 100 not in card({"tokenizer.chat_template": string("x" * 5000)})


@pytest.mark.parametrize("kind", [kind.name.partition("_")[2] for kind in LlamaFileType if kind.name != "GUESSED"])
def test_every_encoding_has_a_use(kind: str) -> None:
    assert use_of(kind)


def test_a_header_stays_in_its_place(tmp_path: Path) -> None:
    evil = "x\n---\n# Title <script>|a|</script>\n```sh\nrm -rf ~\n```\n[l](http://e) \"' \udcff"
    changes: Metadata = {
        key: string(evil)
        for key in (
            "general.name",
            "general.license",
            "general.license.link",
            "general.size_label",
            "general.architecture",
        )
    }
    changes |= {
        "general.tags": strings([evil]),
        "general.languages": strings(["a: b", "- c", "!!python/name:os.system"]),
    }
    files = [CardFile(("a b'$(touch x)|`.gguf",), 10, 1.0, "Q8_0", ("0",))]
    text = card(changes, files)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    front = read_card(tmp_path, lambda note: pytest.fail(note))
    assert front["license"] == " ".join(evil.replace("\udcff", "?").split())
    assert front["language"] == ["a: b", "- c", "!!python/name:os.system"]
    page = text.partition("\n---\n\n")[2]
    outside = [block for index, block in enumerate(page.split("```")) if index % 2 == 0]
    assert all("<script>" not in block and "rm -rf" not in block.replace("\\`\\`\\`sh rm -rf", "") for block in outside)
    assert r"``a b'$(touch x)\|`.gguf``" in text
    assert "llama-cli -m 'a b'\\''$(touch x)|`.gguf'" in text


SEEING = CardFile(("mmproj-Tiny-F16.gguf",), 8 * 10**8, 16.3, "F16", senses=("images",))


def test_a_model_that_sees() -> None:
    text = card(files=[*FILES, SEEING])
    assert "pipeline_tag: image-text-to-text" in text
    assert "| `mmproj-Tiny-F16.gguf` | F16 | 16.30 | 800.0 MB | For images, with any of the models |" in text
    assert (
        "llama-mtmd-cli -m Tiny-Q4_K_M.gguf --mmproj mmproj-Tiny-F16.gguf --image image.jpg -p 'What is in this image?'"
        in text
    )
    assert "llama-server -m Tiny-Q4_K_M.gguf --mmproj mmproj-Tiny-F16.gguf" in text
    assert "printf '%s\\n' 'FROM ./Tiny-Q4_K_M.gguf' 'FROM ./mmproj-Tiny-F16.gguf' > Modelfile" in text
    assert "llama-cli -m Tiny-Q4_K_M.gguf" in text


def test_a_model_that_hears_too() -> None:
    both = CardFile(("mmproj-a b.gguf",), 8 * 10**8, 16.3, "F16", senses=("images", "sound"))
    text = card(files=[*FILES, both])
    assert "pipeline_tag: any-to-any" in text
    assert "With llama.cpp, given images or sound:" in text
    assert "--mmproj 'mmproj-a b.gguf' --audio sound.wav -p 'What is said?'" in text


def test_a_published_model_that_sees() -> None:
    text = card(files=[*FILES, SEEING], publisher=Publisher(repo="me/Tiny-GGUF"))
    assert "With llama.cpp, given images:" in text
    assert "llama-mtmd-cli -hf me/Tiny-GGUF:Q4_K_M --image image.jpg" in text


def test_a_projector_alone() -> None:
    text = card(files=[SEEING])
    assert "llama-mtmd-cli" not in text
