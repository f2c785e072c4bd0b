"""llama.cpp's own tools, as `build_tools.py` compiles them: what they print, as numbers."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from needed import need

# What makes the tools compute in float32 with unquantized caches; weights are not repacked for other kernels.
PLAIN = "--threads 1 --flash-attn off --cache-type-k f32 --cache-type-v f32 --no-repack".split()
NUMBER = r"([-+]?(?:nan|inf|[0-9.e+-]+))"


def run_tool(name: str, *arguments: object) -> str:
    """What the tool printed. RuntimeError, with that, if it failed."""
    program = need("tools") / name
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=600)
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{said[-4000:]}")
    return said


def perplexity(
    model: Path, text: Path, *, context: int, chunks: int, base: Path, options: Sequence[str] = PLAIN
) -> tuple[float, float]:
    """Perplexity and its standard error by llama-perplexity, which writes all logits of the model into `base`."""
    arguments = [*_windows(model, text, context, chunks), *options, "--kl-divergence-base", base]
    return _pair(run_tool("llama-perplexity", *arguments), r"Final estimate: PPL =")


def divergence(
    model: Path, text: Path, *, context: int, chunks: int, base: Path, options: Sequence[str] = PLAIN
) -> dict[str, float]:
    """What llama-perplexity finds against the logits in `base`, by the names of `quality.Quality`."""
    windows = _windows(model, text, context, chunks)
    arguments = [*windows, *options, "--kl-divergence", "--kl-divergence-base", base]
    said = run_tool("llama-perplexity", *arguments)
    found = {}
    for name, words, scale in (
        ("perplexity", r"Mean PPL\(Q\)\s*:", 1.0),
        ("log_ratio", r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:", 1.0),
        ("divergence", r"Mean\s+KLD:", 1.0),
        ("change", r"RMS Δp\s*:", 0.01),
        ("same_top", r"Same top p:", 0.01),
    ):
        value, error = _pair(said, words)
        found |= {name: value * scale, f"{name}_error": error * scale}
    for name, words in (("max", "Maximum"), ("999", "99.9%"), ("99", "99.0%"), ("median", "Median")):
        found[f"divergence_{name}"] = float(_match(said, rf"{re.escape(words)}\s+KLD:\s*{NUMBER}")[1])
    return found


def _windows(model: Path, text: Path, context: int, chunks: int) -> Sequence[object]:
    return ["-m", model, "-f", text, "-c", context, "-b", context, "--chunks", chunks, "--threads", 1, "--no-warmup"]


def _pair(said: str, words: str) -> tuple[float, float]:
    match = _match(said, rf"{words}\s*{NUMBER}\s*(?:±|\+/-)\s*{NUMBER}")
    return float(match[1]), float(match[2])


def _match(said: str, pattern: str) -> re.Match[str]:
    match = re.search(pattern, said)
    if match is None:
        raise RuntimeError(f"{pattern} is not in what the tool printed:\n{said[-4000:]}")
    return match
