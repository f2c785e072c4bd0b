"""What `--help` shows besides the options' own texts: examples, exit codes, groups of options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from typer import BadParameter, Exit
from typer.core import TyperCommand, TyperGroup

from ggufsmith.cli.hints import ALONE, advice, suspicious
from ggufsmith.cli.lean import plain_values

ADAPTER = "adapter_config.json"  # in the folder of an adapter, which is never quantized
# Of click, which some releases of typer carry themselves.
UsageError = cast(type[Exception], BadParameter.__mro__[1])

EXIT_CODES = (
    "0 done and verified, 1 failed while working, 2 usage, or a path that does not exist, 3 input not supported, "
    "4 input malformed or unsafe, 5 no space, 6 output locked or would be overwritten, 130 or 143 interrupted"
)

# Command -> (command line, what it does).
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "convert": (
        (
            "gguf-convert ./DeepSeek-R1-Distill-Qwen-7B",
            "writes DeepSeek-R1-Distill-Qwen-7B-F16.gguf into that folder",
        ),
        (
            "gguf-convert ./Meta-Llama-3-8B-Instruct --recipe q4_K_M --recipe q6_K",
            "writes two quantized files from one pass over the weights, without a 16-bit file in between",
        ),
        ("gguf-convert ./TinyLlama-1.1B --outtype bf16 --outdir ./gguf", "keeps bfloat16 and writes into that folder"),
        (
            "gguf-convert Qwen/Qwen2.5-7B-Instruct --recipe q4_K_M --stream",
            "converts a model from the Hugging Face hub without storing its weights",
        ),
        ("gguf-convert ./my-adapter", "makes a GGUF adapter of a PEFT adapter, for llama.cpp's --lora"),
        (
            "gguf-convert ./Meta-Llama-3-8B-Instruct --lora ./my-adapter --recipe q4_K_M",
            "merges the adapter into its base model and quantizes, in one pass",
        ),
        (
            "gguf-convert llama-2-7b.ggmlv3.q4_K_M.bin --override-kv llama.context_length=int:4096",
            "converts a file from before GGUF and keeps its weights unchanged",
        ),
        (
            "gguf-convert ./Qwen3-0.6B --recipe q4_K_M --calibrate",
            "chooses the bytes by what the layers compute on the text that ships with ggufsmith",
        ),
        ("gguf-convert ./Qwen3-0.6B --dry-run", "shows every tensor and the exact size, and writes nothing"),
    ),
    "quant": (
        ("gguf-quant Model-7B-F16.gguf --recipe q4_K_M", "writes Model-7B-Q4_K_M.gguf beside it"),
        (
            "gguf-quant Model-7B-BF16.gguf -r q6_K -r iq4_xs --imatrix model.imatrix.gguf --outdir ./out",
            "writes two files from one pass, with an importance matrix",
        ),
        (
            "gguf-quant Model-7B-F16.gguf -r q4_K_M --tensor-type 'ffn_down=q6_K' --dry-run",
            "shows every tensor's type and the exact size, and writes nothing",
        ),
        (
            "gguf-quant Model-7B-F16.gguf --target-size 4.5GiB --save-recipe mine.toml",
            "chooses the types with the least error for that size, and saves them as a recipe for use with -r "
            "mine.toml",
        ),
        (
            "gguf-quant Model-7B-BF16.gguf --match q4_K_M --calibrate",
            "writes the file of that recipe's size that predicts most nearly what the model predicts",
        ),
    ),
    "eval": (
        (
            "ggufsmith eval Model-7B-*.gguf --against ./Model-7B",
            "shows perplexity and divergence of every file over the text that comes with ggufsmith",
        ),
        (
            "ggufsmith eval --against ./Model-7B --recipe q4_K_M --recipe iq4_xs --imatrix imatrix.gguf",
            "judges recipes before anything is written",
        ),
        (
            "ggufsmith eval *.gguf --against org/Model-7B --text wiki.test.txt --plot quality.svg --card",
            "draws a picture and puts the table into README.md",
        ),
        (
            "ggufsmith eval A.gguf B.gguf --against Model-7B-F16.gguf --engine llama.cpp --compare A.gguf B.gguf",
            "runs the files in llama.cpp, shows their speed, and says whether one is better",
        ),
    ),
    "imatrix": (
        ("ggufsmith imatrix ./Qwen3-0.6B", "writes Qwen3-0.6B-imatrix.gguf into that folder"),
        (
            "ggufsmith imatrix Model-7B-BF16.gguf --text my-texts --chunks 200 -o mine.gguf",
            "runs texts of your own through the model, and stops after 200 pieces of 512 tokens",
        ),
        ("ggufsmith imatrix --in one.gguf --in other.dat -o both.gguf", "merges two importance matrices of one model"),
        ("ggufsmith imatrix --in Qwen3-0.6B-imatrix.gguf --show-statistics", "shows the statistics of every tensor"),
    ),
    "sensitivity": (
        ("ggufsmith sensitivity ./Qwen3-0.6B", "writes Qwen3-0.6B-sensitivity.json into that folder"),
        (
            "ggufsmith sensitivity Model-7B-BF16.gguf --effort none --text my-texts -o mine.json",
            "measures the bytes of llama.cpp's quantizer on texts of your own",
        ),
    ),
    "recipes": (
        ("ggufsmith recipes", "prints all recipes, the largest first"),
        ("ggufsmith recipes ./Qwen3-0.6B", "shows the size of this model with each recipe"),
        ("ggufsmith recipes Model-7B-F16.gguf -r q4_K_M", "shows the type of every tensor and the rule that gives it"),
    ),
    "inspect": (
        ("ggufsmith inspect Model-7B-Q4_K_M.gguf", "shows header, keys, sizes by role, and tensors"),
        ("ggufsmith inspect Model-7B-Q4_K_M.gguf Model-7B-Q4_K_S.gguf --no-tensors", "shows how two files differ"),
    ),
    "verify": (
        ("ggufsmith verify Model-7B-Q4_K_M.gguf", "checks that the file is complete and every weight is finite"),
        (
            "ggufsmith verify Model-7B-Q4_K_M.gguf --source ./Model-7B",
            "checks, tensor by tensor, that it was made from this model",
        ),
        (
            "ggufsmith verify Model-7B-Q4_K_M.gguf --record Model-7B-Q4_K_M.gguf.provenance.json",
            "checks that it is the file that the record describes",
        ),
    ),
    "name": (
        ("ggufsmith name Model-7B-Q4_K_M.gguf", "shows what the name says and whether the header agrees"),
        ("ggufsmith name *.gguf --strict-name", "ends with exit code 2 if a name lacks a size or a version"),
    ),
    "split": (
        (
            "ggufsmith split Model-70B-Q4_K_M.gguf --split-max-size 4G",
            "writes Model-70B-Q4_K_M-00001-of-00011.gguf and so on",
        ),
        (
            "ggufsmith split Model-70B-Q4_K_M.gguf --split-max-size 4G --dry-run",
            "shows how many shards there would be and how large they are",
        ),
    ),
    "merge": (
        ("ggufsmith merge Model-70B-Q4_K_M-00001-of-00011.gguf", "writes Model-70B-Q4_K_M.gguf beside the shards"),
        (
            "ggufsmith merge Model-70B-Q4_K_M-00001-of-00011.gguf /elsewhere/Model-70B-Q4_K_M.gguf",
            "writes it under that name",
        ),
    ),
    "card": (
        ("ggufsmith card *.gguf", "writes README.md for the files of this folder"),
        ("ggufsmith card *.gguf --repo me/Model-7B-GGUF --base-model org/Model-7B --output -", "prints it"),
    ),
    "push": (
        ("ggufsmith push out me/Model-7B-GGUF --create", "publishes the files of a folder in a new repository"),
        ("ggufsmith push Model-7B-Q6_K.gguf me/Model-7B-GGUF", "adds a file to a repository"),
    ),
    "modelfile": (
        ("ggufsmith modelfile Model-7B-Q4_K_M.gguf", "writes Model-7B-Q4_K_M.Modelfile, for `ollama create`"),
        ("ggufsmith modelfile my-adapter-F32-LoRA.gguf --base Model-7B-Q4_K_M.gguf -o -", "prints one for an adapter"),
    ),
    "which": (
        ("ggufsmith which ./Model-7B --memory 12GiB", "shows which recipes fit into 12 GiB, and which is the best"),
        (
            "ggufsmith which org/Model-7B --memory 8GiB --context 32768 --cache-type q8_0",
            "counts a cache for 32768 tokens in 8 bits; of the model, only headers are read",
        ),
        (
            "ggufsmith which Model-7B-F16.gguf --memory 6GiB --table quality.csv",
            "shows the loss of every recipe that `ggufsmith eval --csv quality.csv` has measured",
        ),
    ),
    "to-hf": (
        ("ggufsmith to-hf Model-7B-BF16.gguf", "writes config.json, tokenizer and safetensors into Model-7B-hf"),
        (
            "ggufsmith to-hf Model-7B-Q8_0.gguf --dtype bfloat16 --outdir ./Model-7B",
            "dequantizes the weights and writes into that folder",
        ),
    ),
}


def epilog(command: str) -> str:
    """Examples and exit codes."""
    examples = "\n\n".join(f"{line}\n  {what}" for line, what in EXAMPLES[command])
    return f"\n[bold]Examples[/bold]\n\n{examples}\n\n[bold]Exit codes[/bold]\n\n{EXIT_CODES}\n"


def arranged(params: list[Any]) -> list[Any]:
    """The options as help shows them: flags without a value."""
    for param in params:
        plain_values(param)
        if getattr(param, "is_flag", False):
            param.metavar = ""  # some releases of typer show the type of flags too
    return params


class Command(TyperCommand):
    """A command with arranged options, whose paragraphs are lines that wrap as wide as the screen.

    Words of other programs are answered with the same command in our options (see `cli.hints`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    def get_params(self, ctx: Any) -> list[Any]:
        """The options, arranged."""
        return arranged(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command. Ends the program with code 2 if they are another program's."""
        words = args = spelled_out(args)
        try:
            rest: list[str] = super().parse_args(ctx, list(args))
        except UsageError:
            self._advise(ctx, words)
            raise
        if suspicious(words):
            self._advise(ctx, words)
        return rest

    def _advise(self, ctx: Any, words: list[str]) -> None:
        from ggufsmith.cli import render
        from ggufsmith.container.errors import Usage
        from ggufsmith.quantize.recipes.files import recipe_name

        params = self.get_params(ctx)
        options = {name: not getattr(param, "is_flag", False) for param in params for name in param.opts}
        found = advice(str(self.name), words, options, recipe_name)
        if found and not ("--recipe" in found.words and Path(found.words[0], ADAPTER).is_file()):
            render.failure(Usage(found.why, fix=found.sentence(ctx.command_path)), "--json" in words)
            raise Exit(Usage.code)


def spelled_out(words: list[str]) -> list[str]:
    """The words with the values of options that can stand alone."""
    found = []
    for k, word in enumerate(words):
        found.append(word)
        if word in ALONE and (k + 1 == len(words) or words[k + 1].startswith("-")):
            found.append(ALONE[word])
    return found


class Group(TyperGroup):
    """A group of commands with arranged options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options, arranged."""
        return arranged(super().get_params(ctx))
