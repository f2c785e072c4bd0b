"""Chats laid out in a model's own format, as tokens. Templates are recognised by their text and never rendered.

A chat template is a program that came with a checkpoint. What it writes around the messages is, for most models, one of
a few published formats; FORMATS has them as data. A special token of such a format is the token of that text, never
the result of tokenizing it, and what a message says stays ordinary text, even if it spells a special token.

Sources: the model cards and papers that describe each format, and llama.cpp's list of them (src/llama-chat.cpp,
`llm_chat_detect_template`, and its tests). Only what stands around messages is laid out: default system messages, dates
and tools, which some templates add by themselves, are not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

BOS, EOS = "{bos}", "{eos}"
Message = Mapping[str, str]
Turn = tuple[str, str]


@dataclass(frozen=True)
class ChatFormat:
    """What stands around the messages of each role.

    markers: texts that a template of this format has, all of them. absent: texts that it has not.
    turns:   role -> what stands before and behind its messages; BOS and EOS stand for the vocabulary's tokens. Without
             "system", a system message becomes the beginning of the user's next one.
    begin:   what stands before everything.
    joint:   what then stands before and behind the system message.
    strip:   white space around messages is left out.
    """

    name: str
    markers: tuple[str, ...]
    turns: Mapping[str, Turn]
    absent: tuple[str, ...] = ()
    begin: str = ""
    joint: tuple[str, str] = ("", "\n\n")
    strip: bool = False


def _same(before: str, behind: str) -> dict[str, Turn]:
    """All roles with the same texts around their messages, in which {role} stands for the role's name."""
    return {role: (before.replace("{role}", role), behind) for role in ("system", "user", "assistant")}


# In the order in which they are tried: the more special ones first.
FORMATS: tuple[ChatFormat, ...] = (
    ChatFormat("phi-4", ("<|im_start|>", "<|im_sep|>"), _same("<|im_start|>{role}<|im_sep|>", "<|im_end|>")),
    ChatFormat("chatml", ("<|im_start|>", "<|im_end|>"), _same("<|im_start|>{role}\n", "<|im_end|>\n")),
    ChatFormat(
        "llama-3",
        ("<|start_header_id|>", "<|end_header_id|>"),
        _same("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
        begin=BOS,
        strip=True,
    ),
    ChatFormat(
        "llama-4",
        ("<|header_start|>", "<|header_end|>"),
        _same("<|header_start|>{role}<|header_end|>\n\n", "<|eot|>"),
        begin=BOS,
        strip=True,
    ),
    ChatFormat(
        "gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        {
            "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
        },
        begin=BOS,
        strip=True,
    ),
    ChatFormat(
        "command-r",
        ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        {
            "user": ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
            "assistant": ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
            "system": ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        },
        absent=("<|START_RESPONSE|>",),
        begin=BOS,
        strip=True,
    ),
    ChatFormat(
        "deepseek-v3",
        ("<｜User｜>", "<｜Assistant｜>"),
        {
            "user": ("<｜User｜>", ""),
            "assistant": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
            "system": ("", ""),
        },
        begin=BOS,
    ),
    ChatFormat(
        "granite",
        ("<|start_of_role|>", "<|end_of_role|>"),
        _same("<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n"),
    ),
    ChatFormat(
        "exaone",
        ("[|system|]", "[|assistant|]", "[|endofturn|]"),
        {
            "user": ("[|user|]", "\n"),
            "assistant": ("[|assistant|]", "[|endofturn|]\n"),
            "system": ("[|system|]", "[|endofturn|]\n"),
        },
    ),
    ChatFormat(
        "glm-4",
        ("[gMASK]<sop>", "<|user|>"),
        _same("<|{role}|>\n", ""),
        begin="[gMASK]<sop>",
    ),
    ChatFormat(
        "llama-2",
        ("[INST]", "<<SYS>>"),
        {
            "user": (f"{BOS}[INST] ", " [/INST]"),
            "assistant": (" ", f" {EOS}"),
        },
        joint=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        strip=True,
    ),
    ChatFormat(
        "mistral-v7-tekken",
        ("[INST]", "[SYSTEM_PROMPT]"),
        {
            "user": ("[INST]", "[/INST]"),
            "assistant": ("", EOS),
            "system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        },
        absent=("[SYSTEM_PROMPT] ", "[INST] "),
        begin=BOS,
    ),
    ChatFormat(
        "mistral-v7",
        ("[INST]", "[SYSTEM_PROMPT]"),
        {
            "user": ("[INST] ", "[/INST]"),
            "assistant": (" ", EOS),
            "system": ("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"),
        },
        begin=BOS,
    ),
    ChatFormat(
        "mistral-v1",
        ("[INST] ", " [/INST]"),
        {
            "user": ("[INST] ", " [/INST]"),
            "assistant": (" ", EOS),
        },
        begin=BOS,
    ),
    ChatFormat(
        "mistral-v3",
        ("[INST] ", "[/INST]"),
        {
            "user": ("[INST] ", "[/INST]"),
            "assistant": (" ", EOS),
        },
        begin=BOS,
    ),
    ChatFormat(
        "mistral-v3-tekken",
        ("[INST]", "[/INST]"),
        {
            "user": ("[INST]", "[/INST]"),
            "assistant": ("", EOS),
        },
        begin=BOS,
    ),
    ChatFormat("phi-4-mini", ("'<|' +", "'|>'", "<|end|>"), _same("<|{role}|>", "<|end|>"), absent=("|>\\n", "|>\n")),
    ChatFormat("phi-3", ("<|user|>", "<|assistant|>", "<|end|>"), _same("<|{role}|>\n", "<|end|>\n")),
    ChatFormat("zephyr", ("<|user|>\\n", "<|assistant|>", "eos_token"), _same("<|{role}|>\n", f"{EOS}\n")),
    ChatFormat(
        "vicuna",
        ("USER: ", "ASSISTANT: "),
        {
            "user": ("USER: ", " "),
            "assistant": ("ASSISTANT: ", EOS),
            "system": ("", " "),
        },
        begin=BOS,
    ),
    ChatFormat(
        "alpaca",
        ("### Instruction:", "### Response:"),
        {
            "user": ("### Instruction:\n", "\n\n"),
            "assistant": ("### Response:\n", f"{EOS}\n\n"),
            "system": ("", "\n\n"),
        },
    ),
    ChatFormat(
        "deepseek-v2",
        ("User: ", "Assistant: "),
        {
            "user": ("User: ", "\n\n"),
            "assistant": ("Assistant: ", EOS),
            "system": ("", "\n\n"),
        },
        begin=BOS,
    ),
)
# For models without a template, and with one that is not recognised.
PLAIN = ChatFormat(
    "plain text",
    (),
    {"system": ("", "\n\n"), "user": ("User: ", "\n\n"), "assistant": ("Assistant: ", "\n\n")},
)


def recognised(template: str | None) -> ChatFormat:
    """The format of a chat template, found by its text; PLAIN if there is no template, or it is not recognised."""
    if template is None:
        return PLAIN
    for each in FORMATS:
        if all(marker in template for marker in each.markers) and not any(text in template for text in each.absent):
            return each
    return PLAIN


def lay_out(chat: ChatFormat, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
    """The parts of a chat in order: a text, and whether it is one of the format, in which special tokens are meant."""
    yield chat.begin, True
    joined: str | None = None  # the system message that becomes part of the user's next one
    for message in messages:
        role = message["role"]
        content = message["content"].strip() if chat.strip else message["content"]
        if role not in chat.turns:
            joined = content
            continue
        before, behind = chat.turns[role]
        yield before, True
        if joined is not None and role == "user":
            yield from ((chat.joint[0], True), (joined, False), (chat.joint[1], True))
            joined = None
        yield content, False
        yield behind, True
