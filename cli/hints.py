"""What users of llama.cpp's tools type, in our options: so that an error ends with the command that works.

Habits of convert_hf_to_gguf.py (--outtype q8_0), llama-quantize (IN OUT TYPE THREADS), llama-gguf-split (--split,
--merge) and of other programs (--type, --quantize). Nothing here reads a file; `advice` is a pure function of words.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ggufsmith.container.text import shell_command

# Options that may be given without a value -> what that means.
ALONE = {"--calibrate": "auto"}
TEXTS = (".txt", ".md", ".jsonl", ".parquet")  # what is no model
UNQUANTIZED = ("f32", "f16", "bf16", "auto")  # what --outtype takes
TYPE_OPTIONS = ("--type", "--quant", "--quantize", "--quantization", "--qtype", "--ftype", "--format", "-q")
RECIPE_OPTIONS = ("--recipe", "-r")
# Theirs -> ours.
RENAMED = {
    "--output": "--outfile",
    "--out": "--outfile",
    "--nthreads": "--threads",
    "--nthread": "--threads",
    "--remote": "--stream",
}
# Flags of things that are done anyway, or that there is no need for.
NEEDLESS = {
    "convert": ("--no-lazy", "--use-temp-file", "--verbose", "--mistral-format"),
    "quant": ("--verbose",),
    "split": ("--split", "--verbose"),
    "merge": ("--merge", "--verbose"),
}


def suspicious(words: Sequence[str]) -> bool:
    """Whether words that could be parsed may yet be another program's. Cheap: it is asked of every command line."""
    text = " ".join(words).replace("=", " ") + " "
    if any(f"{name} " in text for name in ALONE):
        return True
    if "--outtype " in text and not any(f"--outtype {kind} " in text.lower() for kind in UNQUANTIZED):
        return True
    return any("," in word for word in words)


@dataclass(frozen=True)
class Advice:
    """why: what was wrong, as a sentence without a full stop. words: the command's arguments as they should be."""

    why: str
    words: tuple[str, ...]

    def sentence(self, program: str) -> str:
        """The advice, for the end of an error. The command can be copied into a shell."""
        return f"Did you mean: {shell_command(*program.split(), *self.words)}"


def advice(
    command: str, words: Sequence[str], options: Mapping[str, bool], recipe_name: Callable[[str], str | None]
) -> Advice | None:
    """The same command in our options, if some of its words are another program's.

    command:     convert, quant, split or merge. words: its arguments.
    options:     names of its options, and whether a value follows.
    recipe_name: the name of a recipe as help writes it, for a text that is one.
    None where there is nothing to say, or where a word is left that no option explains.
    """
    reading = _Reading(command, options, recipe_name)
    reading.read(list(words))
    reading.find_swallowed()
    if not reading.why or reading.unknown:
        return None
    return Advice(reading.why[0], tuple(reading.written()))


@dataclass
class _Reading:
    """Words read so far."""

    command: str
    options: Mapping[str, bool]
    recipe_name: Callable[[str], str | None]
    why: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    output: str | None = None
    threads: str | None = None
    unknown: bool = False

    def read(self, words: list[str]) -> None:
        """Read a whole command line."""
        while words:
            word = words.pop(0)
            if not word.startswith("-") or word == "-":
                self.place(word)
                continue
            name, joined, value = word.partition("=")
            values = [value] if joined else words[:1]
            recipes = self.named(values[0]) if values else []
            foreign = name not in self.options
            if foreign and name in NEEDLESS.get(self.command, ()):
                self.why.append(f"{name} is not needed")
            elif recipes and self.says_recipes(name, values[0], foreign):
                self.recipes += recipes
                del words[: not joined]
            elif foreign and name in RENAMED and RENAMED[name] in self.options:
                self.why.append(f"the option is called {RENAMED[name]}")
                self.kept.append(RENAMED[name])
                if self.options[RENAMED[name]]:
                    self.kept += values
                    del words[: not joined]
            else:
                self.unknown |= foreign
                self.kept.append(word)
                if self.options.get(name) and not joined:
                    self.kept += words[:1]
                    del words[:1]

    def find_swallowed(self) -> None:
        """An option that may stand alone has taken the model, if a value of it is all that the model could be."""
        pairs = enumerate(zip(self.kept, self.kept[1:], strict=False), 1)
        taken = [k for k, (name, word) in pairs if name in ALONE and word != ALONE[name] and not word.endswith(TEXTS)]
        if self.makes and not self.places and len(taken) == 1 and "--lora" not in self.kept:
            name, word = self.kept[taken[0] - 1], self.kept.pop(taken[0])
            self.why.append(f"{name} took {word} as its text, so that no model is left")
            self.places.append(word)

    def says_recipes(self, name: str, value: str, foreign: bool) -> bool:
        """Whether an option whose value names recipes should have been --recipe."""
        if not self.makes:
            return False
        if name in RECIPE_OPTIONS and "," in value:
            self.why.append("--recipe takes one recipe and may be given several times")
        elif name == "--outtype" and (foreign or value.lower() not in UNQUANTIZED):
            self.why.append("--outtype is for unquantized files; recipes are given with --recipe")
        elif name in TYPE_OPTIONS:
            self.why.append(f"recipes are given with --recipe, not with {name}")
        else:
            return False
        return True

    @property
    def makes(self) -> bool:
        """Whether the command makes files by recipes."""
        return self.command in ("convert", "quant")

    def named(self, text: str) -> list[str]:
        """The recipes that a text names, one or several between commas; none if it is anything else."""
        if text.isdecimal():
            return []
        found = [self.recipe_name(part.strip()) for part in text.split(",")]
        return [] if None in found else [name for name in found if name is not None]

    def place(self, word: str) -> None:
        """A word that belongs to no option: the first is the model."""
        if not self.places or not self.makes:
            self.places.append(word)
        elif recipes := self.named(word):
            self.why.append("recipes are given with --recipe")
            self.recipes += recipes
        elif word.endswith(".gguf") and self.output is None:
            self.why.append("the output is given with --outfile")
            self.output = word
        elif word.isdecimal() and self.output and not self.recipes and (recipe := self.recipe_name(word)):
            self.why.append("recipes are given with --recipe, by their names")
            self.recipes.append(recipe)
        elif word.isdecimal() and self.recipes and self.threads is None:
            self.why.append("the number of threads is given with --threads")
            self.threads = word
        else:
            self.unknown = True

    def written(self) -> Iterator[str]:
        """In our order: what it is made from, recipes, where to, the rest."""
        yield from self.places
        for recipe in self.recipes:
            yield from ("--recipe", recipe)
        if self.output is not None and len(self.recipes) > 1:
            yield from ("--outdir", os.path.dirname(self.output) or ".")
        elif self.output is not None:
            yield from ("--outfile", self.output)
        if self.threads is not None:
            yield from ("--threads", self.threads)
        yield from self.kept
