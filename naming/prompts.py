"""How prompts are laid out, as publishers show it: recognised by the markers in a chat template's source.

A template is never rendered. Source: the model cards that describe each format.
"""

# Prompt formats, by markers that a template's source has all of; the first that fits. In the way publishers show them.
PROMPTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "Harmony",
        ("<|start|>", "<|channel|>"),
        "<|start|>system<|message|>{system_prompt}<|end|><|start|>user<|message|>{prompt}<|end|><|start|>assistant",
    ),
    (
        "Llama 3",
        ("<|start_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system_prompt}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "ChatML",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "DeepSeek",
        ("<｜User｜>", "<｜Assistant｜>"),
        "<｜begin▁of▁sentence｜>{system_prompt}<｜User｜>{prompt}<｜Assistant｜>",
    ),
    (
        "Gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "Phi-3",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "<|system|>\n{system_prompt}<|end|>\n<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
    ),
    (
        "Zephyr",
        ("<|user|>", "<|assistant|>"),
        "<|system|>\n{system_prompt}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>\n",
    ),
    ("Llama 2", ("[INST]", "<<SYS>>"), "<s>[INST] <<SYS>>\n{system_prompt}\n<</SYS>>\n\n{prompt} [/INST]"),
    ("Mistral", ("[INST]", "[/INST]"), "<s>[INST] {prompt} [/INST]"),
    ("Alpaca", ("### Instruction:", "### Response:"), "### Instruction:\n{prompt}\n\n### Response:\n"),
    ("Vicuna", ("USER:", "ASSISTANT:"), "{system_prompt} USER: {prompt} ASSISTANT:"),
)


def prompt_format(template: str) -> tuple[str, str] | None:
    """Name and text of the prompt format whose markers a chat template's source has."""
    return next(
        ((name, text) for name, marks, text in PROMPTS if all(mark in template for mark in marks)),
        None,
    )
