"""What `make clients` lets other people's programs say of our files. Each check yields what it looked at."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from files import FILES, every_kind, of_published, smith
from findings import FAILED, MISSING, Finding, NotInstalledError, judged, same
from install import CHROMIUM, LINTERS, MISTRAL_RS, MODELS, NPM, TOOLS, browser

HERE = Path(__file__).resolve().parent
PROBES = HERE.parent / "conformance" / "probes.txt"
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a small village,")
COUNTING = "1, 2, 3, 4, 5, 6,"  # both models are surer of how this goes on than rounding to 8 bits can change
CHAT = [{"role": "user", "content": "Name three colours of the rainbow."}]
STRINGS = 300
MAX_TOKENS = 16
FEW_TOKENS = 6  # of a runtime that is slow without a GPU
TIE = 0.5  # logits: less is no difference between the tokens of one place
SAME = ("f16", "q8_0", "shards")  # files that lose too little of the original for another answer
TOO_NEW = {"Q1_0", "Q2_0"}  # types that gguf-py 0.19 cannot decode, or does not know
NOT_MODELS = ("LoRA", "vocab", "mmproj", "imatrix")  # in names of files that llama.cpp does not run


def texts() -> list[str]:
    """STRINGS different texts: those of the conformance tests, and pairs of them."""
    lines = [line for line in PROBES.read_text(encoding="utf-8").split("\n") if line]
    found = dict.fromkeys(lines)
    for step in count(1):
        for k, line in enumerate(lines):
            found[f"{line} {lines[(k + step) % len(lines)]}"] = None
            if len(found) == STRINGS:
                return list(found)
    raise AssertionError("count() does not end")


def originals() -> list[Path]:
    """The published models. NotInstalledError if none could be fetched."""
    there = sorted(MODELS.glob("*-published.gguf"))
    if not there:
        raise NotInstalledError(f"there is no published model in {MODELS}; install.py says why")
    return there


def node(script: str, asked: Mapping[str, Any]) -> Any:
    """What one of the scripts beside this file answers; it finds its packages in NPM."""
    copy = NPM / script
    if not (NPM / "node_modules").is_dir():
        raise NotInstalledError("the packages of npm are not installed; install.py says why")
    copy.write_bytes((HERE / script).read_bytes())
    done = subprocess.run(
        ["node", copy], cwd=NPM, input=json.dumps(asked), capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- checks: each yields what it looked at ----


def llama_cpp_python() -> Iterator[Finding]:
    """llama-cpp-python: token ids, greedy continuations and a chat, as with the original."""
    for original in originals():
        expected = in_llama_cpp(original)
        for kind, path in of_published(original).items():
            found = in_llama_cpp(path, original if kind in SAME else None)
            yield same(f"{original.name}, {kind}: ids of {STRINGS} texts", expected.tokens, found.tokens)
            yield judged(f"{original.name}, {kind}: a chat", None if found.chat != "" else "no answer")
            if kind not in SAME:
                continue
            for prompt, answer, said in zip(expected.prompts, expected.answers, found.answers, strict=False):
                yield judged(
                    f"{original.name}, {kind}: {MAX_TOKENS} tokens after {prompt[-40:]!r}", astray(answer, said)
                )
    for path in every_kind():
        if not any(word in path.name for word in NOT_MODELS) and "Sees" not in path.name:
            yield judged(f"{path.name}: two tokens", loads(path))


@dataclass(frozen=True)
class Heard:
    """What llama.cpp says of a file.

    tokens:  ids of every text, with special tokens read and not. prompts: texts that are continued.
    answers: of each prompt, float32 [MAX_TOKENS, vocabulary], the logits of the original's greedy continuation.
    chat:    the answer of a chat; None without a template.
    """

    tokens: list[list[int]]
    prompts: list[str]
    answers: list[NDArray[np.float32]]
    chat: str | None


@cache
def in_llama_cpp(path: Path, along: Path | None = None) -> Heard:
    """Run a file. along: the file whose greedy continuations are followed; its own by default."""
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    llama = Llama(str(path), n_ctx=128, n_batch=128, n_gpu_layers=0, verbose=False, seed=0, logits_all=True)
    tokens = ids_in(llama)
    prompts, chat = list(PROMPTS), None
    if template := llama.metadata.get("tokenizer.chat_template"):
        completed = llama.create_chat_completion(CHAT, max_tokens=MAX_TOKENS, temperature=0.0)
        chat = completed["choices"][0]["message"]["content"]
        prompts.append(Jinja2ChatFormatter(template, "", "")(messages=CHAT).prompt)
    followed = in_llama_cpp(along).answers if along is not None else [None] * len(prompts)
    answers = []
    for prompt, leader in zip(prompts, followed, strict=True):
        begin = llama.tokenize(prompt.encode(), special=True)
        llama.reset()
        llama.eval(begin)
        rows = [llama.scores[llama.n_tokens - 1].copy()]
        while len(rows) < MAX_TOKENS:
            llama.eval([int((rows if leader is None else leader)[len(rows) - 1].argmax())])
            rows.append(llama.scores[llama.n_tokens - 1].copy())
        answers.append(np.stack(rows))
    llama.close()
    return Heard(tokens, prompts, answers, chat)


def ids_in(llama: Any) -> list[list[int]]:
    """Of every text, with special tokens read and not."""
    encoded = [text.encode() for text in texts()]
    return [llama.tokenize(text, add_bos=False, special=special) for text in encoded for special in (False, True)]


def vocabulary(path: Path) -> Any:
    """A file in llama.cpp, without its weights."""
    from llama_cpp import Llama

    return Llama(str(path), vocab_only=True, verbose=False)


def astray(expected: NDArray[np.float32], found: NDArray[np.float32]) -> str | None:
    """Where another token is the most probable one, unless the original thinks both as good as equally probable.

    The original computes with activations in 8 bits, so that its own logits are off by some tenths.
    """
    for place, (row, other) in enumerate(zip(expected, found, strict=True)):
        best, said = int(row.argmax()), int(other.argmax())
        if row[best] - row[said] > TIE:
            return f"token {place} is {said} instead of {best}, whose logit is {row[best] - row[said]:.2f} higher"
    return None


def loads(path: Path) -> str | None:
    """What prevents llama.cpp from running a small file, if anything does."""
    from llama_cpp import Llama

    try:
        llama = Llama(str(path), n_ctx=64, n_gpu_layers=0, verbose=False)
        llama("Hello", max_tokens=2, temperature=0.0)
        llama.close()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


def tokenizers() -> Iterator[Finding]:
    """transformers: the ids of the folder that to-hf writes of our file are those of the original in llama.cpp.

    But for texts with SentencePiece's own sign for a space beside spaces: llama.cpp tells the two apart.
    """
    from transformers import AutoTokenizer

    for original in originals():
        folder = FILES / f"{original.name.removesuffix('.gguf')}-hf"
        if not folder.is_dir():
            smith("to-hf", of_published(original)["f16"], "--outdir", folder, "--dtype", "bfloat16")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        pairs = zip(texts(), ids_in(vocabulary(original))[1::2], strict=True)
        plain = {text: ids for text, ids in pairs if "\u2581" not in text}
        ours = [tokenizer.encode(text, add_special_tokens=False) for text in plain]
        yield same(f"{original.name}: ids of {len(plain)} texts", list(plain.values()), ours)


def transformers_gguf() -> Iterator[Finding]:
    """transformers with gguf_file=: the greedy continuation, as with the original."""
    import torch
    from transformers import AutoModelForCausalLM

    original = originals()[0]
    prompt = torch.tensor([vocabulary(original).tokenize(COUNTING.encode())])

    def continued(path: Path) -> list[int]:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        made = model.generate(prompt, max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=0)
        return [int(each) for each in made[0]]

    expected = continued(original)
    for kind, path in of_published(original).items():
        if kind in ("f16", "q8_0"):
            yield same(f"{original.name}, {kind}", expected, continued(path))


def gguf_py() -> Iterator[Finding]:
    """gguf-py's reader: every kind of file, every tensor of every type that it can decode."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for path in every_kind():
        try:
            reader, undecoded = GGUFReader(path), set()
        except ValueError as error:
            lacking = any(f"-{name}.gguf" in path.name for name in TOO_NEW)
            yield (
                Finding(MISSING, f"{path.name}: a type that gguf-py does not know")
                if lacking
                else judged(path.name, str(error))
            )
            continue
        absurd = []
        for tensor in reader.tensors:
            try:
                values = dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError:
                undecoded.add(tensor.tensor_type.name)
                continue
            if not (abs(values) < 1e9).all():
                absurd.append(tensor.name)
        yield judged(
            f"{path.name}: weights of {len(reader.tensors)} tensors",
            f"not finite, or absurd: {', '.join(absurd)}" if absurd else None,
        )
        if undecoded:
            names = ", ".join(sorted(undecoded))
            yield Finding(MISSING if undecoded <= TOO_NEW else FAILED, f"{path.name}: gguf-py cannot decode {names}")


def npm_parsers() -> Iterator[Finding]:
    """@huggingface/gguf and hyllama: the number of tensors of every kind of file; @huggingface/jinja: the templates."""
    from ggufsmith.container.reader import open_gguf

    paths = [*every_kind(), *(path for each in originals() for path in (each, of_published(each)["f16"]))]
    for name, clients in node("parse.mjs", {"files": list(map(str, paths))}).items():
        with open_gguf(Path(name)) as opened:
            expected = len(opened.tensors)
        for client, said in clients.items():
            if client == "@huggingface/jinja":
                yield judged(f"{client}: {Path(name).name}", said if "Error" in said else None)
            else:
                yield same(f"{client}: {Path(name).name}: tensors", expected, said)


def node_llama_cpp() -> Iterator[Finding]:
    """node-llama-cpp: token ids and a greedy continuation, as with the original."""
    for original in originals():
        made = of_published(original)
        files = [original, *made.values()]
        asked = {"files": list(map(str, files)), "texts": texts(), "prompt": COUNTING}
        found = node("node_llama.mjs", asked)
        expected = found[str(original)]
        for kind, path in made.items():
            said = found[str(path)]
            yield same(f"{original.name}, {kind}: ids of {STRINGS} texts", expected["tokens"], said["tokens"])
            yield answered(original, kind, expected["answer"], said["answer"])


def answered(original: Path, kind: str, expected: str, said: str) -> Finding:
    """Whether a file answers as the original does, or at all, if it has lost more."""
    which = f"{original.name}, {kind}: answer"
    if kind in SAME and expected.strip():
        return same(which, expected, said)
    return judged(f"{which}: {said!r}", None if said.strip() else "is empty")


def mistral_rs() -> Iterator[Finding]:
    """mistral.rs, a runtime in Rust with a reader of its own: token ids and greedy answers, as with the original."""
    folder = TOOLS / MISTRAL_RS.partition("==")[0]
    if not folder.is_dir():
        raise NotInstalledError(f"{MISTRAL_RS} is not installed; install.py says why")
    sys.path.insert(0, str(folder))
    for original in originals():
        expected = in_mistral_rs(original)
        for kind, path in of_published(original).items():
            tokens, answer = in_mistral_rs(path)
            yield same(f"{original.name}, {kind}: ids of {STRINGS} texts", expected[0], tokens)
            yield answered(original, kind, expected[1], answer)


def in_mistral_rs(path: Path) -> tuple[list[list[int]], str]:
    """Ids of every text, and a greedy continuation."""
    from mistralrs import CompletionRequest, Runner, Which

    first, _, rest = path.name.partition("-00001-of-")
    files = sorted(path.parent.glob(f"{first}-*-of-{rest}")) if rest else [path]
    which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=[each.name for each in files])
    runner = Runner(which, token_source="none", no_paged_attn=True)
    tokens = [list(runner.tokenize_text(text, False, None)) for text in texts()]
    asked = CompletionRequest(COUNTING, "default", max_tokens=FEW_TOKENS, temperature=0.0, top_k=1)
    return tokens, runner.send_completion_request(asked).choices[0].text


def wllama() -> Iterator[Finding]:
    """wllama in a headless Chromium: a greedy continuation, as with the original."""
    chromium = needed_browser()
    original = originals()[0]
    made = of_published(original)
    shards = sorted(made["shards"].parent.glob("sharded-*-of-*.gguf"))
    root = MODELS.parent
    models = {"original": [original], "q4_0": [made["q4_0"]], "q8_0": [made["q8_0"]], "shards": shards}
    asked = {
        "chromium": chromium,
        "root": str(root),
        "library": str(NPM / "node_modules/@wllama/wllama/esm"),
        "models": {name: [path.relative_to(root).as_posix() for path in paths] for name, paths in models.items()},
        "prompt": COUNTING,
    }
    found = node("browser.mjs", asked)
    for name, said in found.items():
        if said.startswith("error: "):
            yield Finding(FAILED, f"{original.name}, {name}: {said}")
        else:
            yield answered(original, name, found["original"], said)


def needed_browser() -> str:
    """The program of a Chromium. NotInstalledError without one."""
    if (found := browser()) is None:
        names = ", ".join(CHROMIUM)
        raise NotInstalledError(f"none of {names} is installed; install the package chromium of your system")
    return found


def pages() -> Iterator[Finding]:
    """Chromium shows the pages of inspect, eval and the documentation: no errors, nothing loaded from elsewhere."""
    chromium = needed_browser()
    made = written_pages(FILES / "pages")
    if find_spec("mkdocs") and find_spec("material"):
        made += documentation(FILES / "pages" / "site")
    else:
        yield Finding(MISSING, "the documentation: MkDocs is not installed (`make docs` installs it)")
    for file, seen in node("pages.mjs", {"chromium": chromium, "pages": list(map(str, made))}).items():
        name = Path(file).relative_to(FILES / "pages").as_posix()
        faults = list(seen["faults"])
        if seen["wide"] > 0:
            faults.append(f"{seen['wide']} pixels wider than the window")
        if not seen["words"] and not seen["drawings"]:
            faults.append("it is empty")
        what = f"{name}: {seen['words']} words, {seen['drawings']} drawings"
        yield judged(what, "; ".join(faults) or None)


def written_pages(folder: Path) -> list[Path]:
    """Pages of files and of quality."""
    sys.path.insert(0, str(HERE.parent / "evaluate"))
    from test_plot import some

    from ggufsmith.evaluate.plot import picture

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.html").write_bytes(picture(some(), title="Quality", suffix=".html"))
    for name, path in {"inspect-small": every_kind()[0], "inspect": of_published(originals()[0])["q4_0"]}.items():
        smith("inspect", path, "--no-tensors", "--html", folder / f"{name}.html")
    return sorted(folder.glob("*.html"))


def documentation(folder: Path) -> list[Path]:
    """The pages of the documentation, as a site."""
    config = HERE.parents[1] / "mkdocs.yml"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", config, "--site-dir", folder]
    subprocess.run([*command, "--no-directory-urls"], check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    # The page of what is not found names its styles from the root of a server.
    return sorted(path for path in folder.rglob("*.html") if path.name != "404.html")


def linters() -> Iterator[Finding]:
    """Programs that judge GGUF files, or chat templates in them: they say of ours no more than of the original."""
    for requirement in LINTERS:
        name = requirement.partition("==")[0]
        if not (TOOLS / name).is_dir():
            yield Finding(MISSING, f"{requirement} is not installed; install.py says why")
            continue
        for original in originals():
            for kind, path in of_published(original).items():
                if kind != "shards":
                    expected, found = (exit_code(name, each) for each in (original, path))
                    yield same(f"{name}: {original.name}, {kind}: exit code", expected, found)


# Name of a program -> its arguments for a file. Their exit code is the judgement.
ARGUMENTS: Mapping[str, Callable[[Path], Sequence[str | Path]]] = {
    "modelvet": lambda file: (
        "-c",
        f"from modelvet import verify_path as v; exit(v({str(file)!r}).verdict.name != 'ACCEPT')",
    ),
    "ggufdoctor": lambda file: (TOOLS / "ggufdoctor/bin/ggufdoctor", file),
    "c4nary": lambda file: (TOOLS / "c4nary/bin/c4nary", "scan", file),
    "model-fingerprint": lambda file: (TOOLS / "model-fingerprint/bin/model-fingerprint", "--metadata-only", file),
    "glyphhound": lambda file: (TOOLS / "glyphhound/bin/glyphhound", "scan", file),
}


@cache
def exit_code(name: str, file: Path) -> int:
    """The exit code of a program for a file."""
    environment = {**os.environ, "PYTHONPATH": str(TOOLS / name)}
    command = [sys.executable, *map(str, ARGUMENTS[name](file))]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


_ORDER = (
    gguf_py,
    npm_parsers,
    linters,
    llama_cpp_python,
    tokenizers,
    transformers_gguf,
    node_llama_cpp,
    mistral_rs,
    wllama,
    pages,
)
CHECKS: Mapping[str, Callable[[], Iterator[Finding]]] = {check.__name__: check for check in _ORDER}
