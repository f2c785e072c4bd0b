"""What a file is good for, by its encoding."""

import re

# The first pattern that fits.
USES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"F32", "Full precision; for quantizing and comparing"),
        (r"B?F16", "Unquantized; for quantizing further, or where memory does not matter"),
        (r"Q8_0", "Practically the original"),
        (r"Q6_K", "Very close to the original"),
        (r"Q5_K.*", "Little loss; choose it if it fits"),
        (r"Q4_K_M", "Good balance of size and quality; the usual choice"),
        (r"Q4_K.*|IQ4_.*", "A little smaller than Q4_K_M, quality close to it"),
        (r"Q5_.*|Q4_.*", "Older type; fast on some devices, Q4_K_M is better for its size"),
        (r"(MX|NV)FP4.*", "Four-bit floats; for models that were trained with them"),
        (r"Q3_K.*|IQ3_.*", "Noticeable loss; for when memory is short"),
        (r"Q2_K.*|IQ2_.*|Q2_0", "Strong loss; for large models that would not fit otherwise"),
        (r"T?Q1_.*|IQ1_.*|TQ2_.*", "For models that were trained for it, or as a last resort"),
    )
)


def use_of(encoding: str | None) -> str:
    """What a file with this encoding is good for; empty if nothing is known to say."""
    return next((text for pattern, text in USES if encoding and pattern.fullmatch(encoding)), "")
