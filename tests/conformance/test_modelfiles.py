"""Templates of Modelfiles, run by Go as Ollama runs them, against the chat templates they are made of."""

import json
import os
import subprocess
from collections.abc import Mapping

import pytest
from test_chat_layouts import SYSTEM, TEMPLATES

from ggufsmith.container.values import Metadata, boolean, string, strings, u32
from ggufsmith.evaluate.chat import BOS, EOS, recognised
from ggufsmith.modelfile import go_template
from needed import need

pytestmark = pytest.mark.conformance

# As Ollama does it: messages have Role and Content, and `slice` and `len` are Go's own.
PROGRAM = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type message struct { Role, Content string }
type work struct { Template string; Messages []message }

func main() {
	var all []work
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil { panic(err) }
	found := []string{}
	for _, each := range all {
		var text strings.Builder
		made := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
		if err := made.Execute(&text, map[string]any{"Messages": each.Messages}); err != nil { panic(err) }
		found = append(found, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(found)
}
"""
TURNS = (
    {"role": "user", "content": "What's the time of day?\n{{ .Content }} 1234"},
    {"role": "assistant", "content": "It is 12:34, naïve café.\n\n- a list"},
    {"role": "user", "content": '你好, and "then"?'},
)
CHATS = (TURNS[:1], TURNS, (SYSTEM, *TURNS), (SYSTEM, TURNS[0]))


def keys(*, adds: bool) -> Metadata:
    return {
        "tokenizer.ggml.tokens": strings(["<bos>", "<eos>"]),
        "tokenizer.ggml.bos_token_id": u32(0),
        "tokenizer.ggml.eos_token_id": u32(1),
        "tokenizer.ggml.add_bos_token": boolean(adds),
        "tokenizer.chat_template": string("x"),
    }


def rendered(template: str, messages: tuple[Mapping[str, str], ...]) -> str:
    """As transformers renders it."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template).render(messages=list(messages), bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="module")
def by_go(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, bool], str]:
    """What Go makes of every template and chat: all in one run."""
    go = need("go") / "bin" / "go"
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(PROGRAM, encoding="utf-8")
    places, work = [], []
    for name, template in TEMPLATES.items():
        for adds in (False, True):
            text = go_template(recognised(template), keys(adds=adds))
            for number, chat in enumerate(CHATS):
                places.append((name, number, adds))
                messages = [{"Role": each["role"], "Content": each["content"]} for each in chat]
                work.append({"Template": text, "Messages": messages})
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [go, "run", "main.go"],
        input=json.dumps(work).encode(),
        cwd=folder,
        env=environment | {"GOROOT": str(need("go")), "GOPATH": str(folder / "path"), "CGO_ENABLED": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(zip(places, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_says_the_same_in_go(name: str, by_go: dict[tuple[str, int, bool], str]) -> None:
    before = recognised(TEMPLATES[name]).turns["assistant"][0].replace(BOS, "<bos>").replace(EOS, "<eos>")
    for number, chat in enumerate(CHATS):
        expected = rendered(TEMPLATES[name], chat) + before
        assert by_go[name, number, False] == expected
        assert by_go[name, number, True] == expected.removeprefix("<bos>")  # which Ollama adds
