"""Job files: what they mean, and everything that is wrong in one, reported together."""

import json
import shutil
import tomllib
from contextlib import suppress
from pathlib import Path

import jobs
import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adapters
import checkpoints
from ggufsmith.cli.app import convert_app, quant_app
from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.convert.batch.job import JobFile, JobModel
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.schema import KEYLESS, MODELS, SETTINGS, json_schema
from ggufsmith.pipeline.option import declared
from ggufsmith.pipeline.request import RECORDS
from ggufsmith.quantize.resolve import limits_of


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter without its base."""
    folder = tmp_path_factory.mktemp("tuned")
    adapters.write(checkpoints.write("llama", folder / "base", **jobs.SMALL), folder / "Tuned", named="no/where")
    return folder / "Tuned"


@pytest.fixture
def home(tmp_path: Path, tuned: Path) -> Path:
    """A folder with two model folders, an adapter and a GGUF file, as far as a job file looks at them."""
    shutil.copytree(tuned, tmp_path / "Tuned")
    for name in ("Tiny-A", "Tiny B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "Tiny-C-F16.gguf").write_bytes(b"GGUF")
    return tmp_path


def read(
    home: Path, text: str, name: str = "jobs.toml", shard: tuple[int, int] = (1, 1), **environment: str
) -> JobFile:
    (home / name).write_text(text, encoding="utf-8")
    return read_job(home / name, environment, shard)


def problems(home: Path, text: str, name: str = "jobs.toml") -> list[str]:
    """What is wrong, with the line in front instead of the whole path."""
    with pytest.raises(Malformed) as caught:
        read(home, text, name)
    assert "nothing was done" in str(caught.value)
    return [each.replace(f"{home / name}:", "") for each in caught.value.also]


def names(model: JobModel) -> list[str]:
    return [wanted.path.name for wanted in model.wanted]


def test_what_a_job_means(home: Path) -> None:
    (home / "mine.toml").write_text('extends = "q4_K_M"', encoding="utf-8")
    (home / "Tiny-B.imatrix").touch()
    job = read(
        home,
        """
        output = "${ROOT}/gguf"
        [defaults]
        recipes = ["q4_K_M", "mine.toml"]
        card = "README.md"
        repo = "me/{model}-GGUF"
        [sets.small]
        extends = "smaller"
        recipes = "iq2_xs"
        [sets.smaller]
        recipes = "iq1_s"
        imatrix = "{model}.imatrix"
        folder = "small/{model}"
        shard_size = "${SIZE:-4G}"
        [[model]]
        source = "Tiny-A"
        outtypes = "bf16"
        [[model]]
        source = "./Tiny B"
        extends = "small"
        strict = true
        [[model]]
        source = "Tiny-C-F16.gguf"
        name = "C"
        file = "c.{encoding}.gguf"
        checksums = ""
        """,
        ROOT="out",
    )
    a, b, c = job.models
    assert job.output == home / "out" / "gguf"
    assert (a.name, a.folder, a.is_checkpoint) == ("Tiny-A", job.output / "Tiny-A", True)
    assert names(a) == ["Tiny-A-BF16.gguf", "Tiny-A-Q4_K_M.gguf", "Tiny-A-MINE.gguf"]
    assert [wanted.label for wanted in a.wanted] == ["bf16", "q4_K_M", "mine.toml"]
    assert a.beside("card") == a.folder / "README.md" and a.settings["repo"] == "me/Tiny-A-GGUF"
    assert (b.name, names(b), b.folder) == ("Tiny-B", ["Tiny-B-IQ2_XS.gguf"], job.output / "small" / "Tiny-B")
    assert (b.request.make.imatrix, b.request.make.strict) == (home / "Tiny-B.imatrix", True)
    assert limits_of(b.request.write).max_size == 4 * 10**9
    assert (names(c), c.beside("checksums"), c.is_checkpoint) == (["c.Q4_K_M.gguf", "c.MINE.gguf"], None, False)
    assert a.place == f"{home / 'jobs.toml'}:15"


def test_yaml_says_the_same(home: Path) -> None:
    text = 'output = "o"\n[defaults]\nrecipes = "q8_0"\n[[model]]\nsource = "Tiny-A"\n[[model]]\nsource = "Tiny B"\n'
    one = read(home, text)
    two = read(home, yaml.safe_dump(tomllib.loads(text)), "jobs.yaml")
    assert (
        [names(m) for m in one.models] == [names(m) for m in two.models] == [["Tiny-A-Q8_0.gguf"], ["Tiny-B-Q8_0.gguf"]]
    )


def test_all_problems_at_once(home: Path) -> None:
    found = problems(
        home,
        """output = "${NOWHERE}/o"
colour = "red"
[defaults]
recipes = ["q4_K_M"]
extends = "a"
[sets.a]
extends = "b"
[sets.b]
extends = "a"
[[model]]
source = "Tiny-A"
recipes = ["q4km", "no.toml"]
folder = "../out"
imatrix = "none.gguf"
[[model]]
source = "Tiny-D"
[[model]]
source = "Tiny B"
strict = "yes"
recipe = "q8_0"
outtypes = ["f17"]
shard_size = "many"
[[model]]
source = "Tiny-A"
extends = "c"
include_weights = ["x"]
[[model]]
recipes = "q8_0"
[[model]]
source = "Tiny-C-F16.gguf"
outtypes = ["f16"]
file = "{encoding}/{modle}.bin"
card = "a/b.md"
""",
    )
    expected = [
        ("1", "no variable NOWHERE"),
        ("2", "'colour'"),
        ("7", "circle: a -> b -> a"),
        ("9", "circle: b -> a -> b"),
        ("12", "Did you mean q4_K_M"),
        ("12", "no.toml"),
        ("13", "is outside the output folder"),
        ("14", "no such file"),
        ("16", "no such folder or file"),
        ("19", "strict cannot be 'yes': it is true or false"),
        ("20", "Did you mean recipes"),
        ("21", "Did you mean f16"),
        ("22", "'many' is not a size"),
        ("25", "unknown set 'c'"),
        ("26", "no imatrix"),
        ("27", "source is missing"),
        ("32", "{modle} is not a known field"),
        ("32", "ends in .gguf"),
        ("33", "card names a file"),
    ]
    for line, words in expected:
        assert any(each.startswith(f"{line}: ") and words in each for each in found), (line, words, found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (['source = "Tiny-A"', 'source = "Tiny-A"'], "is also called 'Tiny-A'"),
        (['source = "Tiny-A"\nname = "x"', 'source = "Tiny B"\nname = "X"\nfolder = "x"'], "is also called 'X'"),
        (
            [
                'source = "Tiny-A"\nfolder = "f"\nfile = "{encoding}.gguf"',
                'source = "Tiny B"\nfolder = "f"\nfile = "{encoding}.gguf"',
            ],
            "Q8_0.gguf, as does",
        ),
        (
            [
                'source = "hf://org/X"\nfolder = "f"\nchecksums = ""',
                'source = "Tiny-A"\nfolder = "f"\nfile = "X-{encoding}-LoRA.gguf"',
            ],
            "X-Q8_0-LoRA.gguf, as does",
        ),
        (['source = "Tiny-A"\nfolder = "f"', 'source = "Tiny B"\nfolder = "f"'], "SHA256SUMS, as does"),
        (['source = "Tiny-A"\nfolder = "\u00e9"', 'source = "Tiny B"\nfolder = "E\u0301"'], "SHA256SUMS, as does"),
        (['source = "Tiny-A"\nrecipes = ["q8_0", "Q8_0"]'], "Q8_0.gguf, twice"),
        (['source = "Tiny-A"\nrecipes = ["q8_0", "q6_K"]\nfile = "x.gguf"'], "x.gguf, twice"),
        (['source = "Tiny-A"\ncard = "SHA256SUMS"'], "SHA256SUMS, twice"),
        (['source = "Tiny-C-F16.gguf"\nrecipes = "f16"\nfolder = "."'], "over the input"),
        (['source = "Tiny-A"\nfolder = "/tmp"'], "is outside"),
        (['source = "Tiny-A"\nfolder = "link"'], "is outside"),
        (['source = "Tiny-A"\nname = "a/b"'], "cannot be part of a file name"),
        (['source = "Tiny-A"\nlora = "Tiny B"'], "not the folder of an adapter"),
        (['source = "Tiny-A"\nlora = "Tiny B:much"'], "is not a number"),
        (['source = "Tiny-A"\nfolder = "a\\u0000b"'], "zero character"),
        (['source = "Tiny-A"\nname = ".."'], "cannot be part of a file name"),
        (['source = "Tiny-A"\nname = "CON"'], "cannot be part of a file name"),
        ([f'source = "Tiny-A"\nname = "{"m" * 300}"'], "cannot be part of a file name"),
        (['source = "jobs.toml"'], "does not end in .gguf"),
        (['source = "."'], "no config.json"),
        (['source = "~nobody-here/Tiny-A"'], "no such folder or file"),
        (['source = "Tiny-A"\nrecipes = []'], "nothing to make"),
        (['source = "Tiny-A"\nbase = "Tiny B"'], "base applies to an adapter, but this source is a model folder"),
        (['source = "Tiny-A"\nkeep_split = true'], "Set keep_split = false"),
        (['source = "Tiny-A"\nprune_layers = 1'], "prune_layers applies to a GGUF file"),
        (['source = "Tiny-C-F16.gguf"\nprune_layers = [0, 1.5]'], "'1.5' is not a list of layer numbers"),
        (['source = "Tiny-C-F16.gguf"\nprune_layers = [true]'], "prune_layers cannot be"),
        (['source = "Tiny-C-F16.gguf"\noverride_kv = "a=b"'], "does not set a key"),
        (['source = "Tiny-C-F16.gguf"\ntokenizer = "nowhere"'], "no such folder"),
        (['source = "Tiny-C-F16.gguf"\nkeep_split = true\nshard_size = "1G"'], "keep_split cannot be combined"),
        (['source = "Tiny-A"\nno_tensor_first_split = true'], "applies only to split outputs"),
        (['source = "Tiny-A"\nshard_tensors = 0'], "shard_tensors cannot be 0"),
        (['source = "Tiny-A"\ntensor_types = "attn_v"'], "does not have the form REGEX=TYPE"),
        (['source = "Tiny-A"\ntensor_types = "attn_v=q9"'], "unknown type 'q9'"),
        (['source = "Tiny-A"\ntensor_types = "(=q8_0"'], "not a valid regular expression"),
        (['source = "Tiny-A"\noutput_tensor_type = "q9"'], "unknown type 'q9'"),
        (['source = "Tiny-A"\npure = true\ntarget_bpw = 4.5'], "chooses all types itself"),
        (['source = "Tiny-A"\ntarget_bpw = 400'], "not a valid number of bits"),
        (['source = "Tiny-A"\ntarget_size = "4.5 things"'], "not a size"),
        (['source = "Tiny-A"\ntarget_bpw = [4.5, 4.5]'], "Q4_5BPW.gguf, twice"),
        (['source = "Tiny-A"\npure = true\nmatch = "q4_0"'], "match chooses all types itself"),
        (['source = "Tiny-A"\nmatch = "q9"'], "there is no recipe 'q9'"),
        (['source = "Tiny-A"\nmatch = ["q4_0", "q4_0"]'], "Q4_0_MATCH.gguf, twice"),
        (['source = "Tiny-A"\nsensitivity = "nowhere.json"\nmatch = "q4_0"'], "no such file"),
        (['source = "Tiny-A"\nsensitivity = "Tiny-A/config.json"'], "nothing chooses among them"),
        (['source = "Tuned"'], "recipes applies to a model folder or a GGUF file"),
        (['source = "Tuned"\nrecipes = []\nouttypes = "f32"'], "is not on this machine"),
        (['source = "Tuned"\nrecipes = []\nouttypes = "f32"\nbase = "Tuned"'], "not a base model"),
        (['source = ["Tiny-A"]'], "source cannot be"),
        (['source = "Tiny-A"\ncalibrate = true'], "calibrate cannot be true: it is a text, or a list of texts. Write"),
        (['source = "Tiny-A"\ncalibrate = true'], 'Write calibrate = "auto".'),
        (['source = "Tiny-A"\nimatrix = true'], 'Write imatrix = "auto".'),
        (['source = "Tiny-A"\nimatrix = false'], 'Write imatrix = "".'),
        (['source = "Tiny-A"\ncard = true'], 'Write card = "README.md".'),
        (['source = "Tiny-A"\npush = true'], "push cannot be true: it is a text"),
        (['source = "Tiny-A"\npush = "no name"'], "6: 'no name' is not the name of a repository"),
        (['source = "Tiny-A"\npush = "me/{model}/x"'], "6: 'me/Tiny-A/x' is not the name of a repository"),
        (['source = "Tiny-A"\nrepo = "a b"'], "6: 'a b' is not the name of a repository"),
        (['source = "Tiny-A"\nbase_model = "a/b/c"'], "6: 'a/b/c' is not the name of a repository"),
        (['source = "Tiny-A"\ncreate = true'], "6: create is about publishing, but there is no push"),
        (['source = "Tiny-A"\nprivate = true'], "6: private is about publishing, but there is no push"),
        (['source = "Tiny-A"\nreplace = true'], "6: replace is about publishing, but there is no push"),
        (['source = "Tiny-A"\ncard_template = "t"'], "6: card_template makes the model card, but there is no card"),
    ],
)
def test_what_does_not_fit_together(home: Path, models: list[str], message: str) -> None:
    try:
        (home / "link").symlink_to(home.parent, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        (home / "link").mkdir()
        message = message if '"link"' not in models[0] else "Tiny-A"
    text = 'output = "."\n[defaults]\nrecipes = ["q8_0"]\n' + "".join(f"[[model]]\n{model}\n" for model in models)
    found = problems(home, text)
    assert any(message in each for each in found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output = 1\n[[model]]\nsource = 'Tiny-A'\nrecipes = 'q8_0'", "1: output cannot be 1"),
        ("[[model]]\nsource = 'Tiny-A'\nrecipes = 'q8_0'", "1: output is missing"),
        ("output = 'o'", "1: the job has no model"),
        ("output = 'o'\nmodel = []", "2: the job has no model"),
        ("output = 'o'\nmodel = 3", "2: the job has no model"),
        ("output = 'o'\nmodel = [3]", "2: 0 is a table"),
        ("output = 'o'\ndefaults = 3\n[[model]]\nsource = 'Tiny-A'\nrecipes = 'q8_0'", "2: defaults is a table"),
        ("output = 'o'\nsets = 3\n[[model]]\nsource = 'Tiny-A'\nrecipes = 'q8_0'", "2: sets are tables"),
    ],
)
def test_what_is_no_job(home: Path, text: str, message: str) -> None:
    assert any(message in each for each in problems(home, text))


def test_names_that_are_no_texts(home: Path) -> None:
    text = "output: o\nsets: {1: {recipes: q8_0}}\nmodel:\n- {source: Tiny-A, extends: x, recipes: q8_0, 2: 3}\n"
    found = problems(home, text, "jobs.yml")
    assert [each.partition(".")[0] for each in found] == [
        "4: unknown key 2",
        "4: unknown set 'x'",
    ]


def test_lines_of_yaml(home: Path) -> None:
    found = problems(
        home,
        "output: o\nmodel:\n- source: Tiny-A\n  recipes:\n  - q4km\n- source: nowhere\n  recipes: q8_0\n",
        "jobs.yml",
    )
    assert [each.partition(":")[0] for each in found] == ["4", "6"]


def test_runners_share_the_models(home: Path) -> None:
    text = 'output = "o"\n[defaults]\nrecipes = "q8_0"\n'
    for k in range(5):
        text += f'[[model]]\nsource = "Tiny-A"\nname = "m{k}"\n'
    parts = [[model.name for model in read(home, text, shard=(i, 3)).models] for i in (1, 2, 3)]
    assert parts == [["m0", "m3"], ["m1", "m4"], ["m2"]]
    mixed = (
        'output = "o"\n[defaults]\nrecipes = "q8_0"\n[[model]]\nsource = "elsewhere"\n[[model]]\nsource = "Tiny-A"\n'
    )
    assert [model.name for model in read(home, mixed, shard=(2, 2)).models] == ["Tiny-A"], "it needs only its own"
    with pytest.raises(Malformed, match="elsewhere"):
        read(home, mixed, shard=(1, 2))
    with pytest.raises(Malformed, match="also called 'x'"):
        read(home, mixed + 'name = "x"\n[[model]]\nsource = "other/Tiny-A"\nname = "x"\n', shard=(2, 2))


VALID = {
    "jobs.toml": """output = "o"
[defaults]
recipes = ["q8_0"]
extends = "a"
[sets.a]
strict = true
[[model]]
source = "Tiny-A"
shard_size = "4G"
folder = "{model}/x"
lora = ["Tiny B:0.5"]
tensor_types = ["attn_v=q6_K"]
[[model]]
source = "Tiny-C-F16.gguf"
target_bpw = [4.5]
target_size = "1.5GiB"
prune_layers = 1
override_kv = "a.b=int:1"
[[model]]
source = "Tuned"
base = "Tiny B"
""",
    "jobs.yaml": """output: o
defaults: {recipes: [q8_0], extends: a}
sets: {a: {strict: true}}
model:
- source: Tiny-A
  shard_size: 4G
  folder: "{model}/x"
""",
}
PIECES = st.sampled_from(
    [
        "",
        "\n",
        '"',
        "'",
        "[",
        "]",
        "{",
        "}",
        "[[model]]",
        "= 1",
        ": ",
        "- ",
        "${X}",
        "${",
        "\\u0000",
        "é",
        "../",
        "9e99",
        "~",
    ]
)


@pytest.mark.parametrize("name", VALID)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_is_read_or_refused(home: Path, name: str, data: st.DataObject) -> None:
    text = VALID[name]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(PIECES) + text[stop:]
    with suppress(Failure):
        read(home, text, name)


def test_the_schema_knows_every_key() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["properties"]["model"]["items"]["properties"].keys() == MODELS.keys()
    assert schema["properties"]["defaults"]["properties"].keys() == SETTINGS.keys()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_a_request_has_a_key_or_a_reason(record: type) -> None:
    schema = json_schema()["properties"]["defaults"]["properties"]
    for field in declared(record):
        if field.key is None:
            assert len(KEYLESS[field.flag].split()) > 2, field.name
            continue
        key = SETTINGS[field.key]
        assert (key.inputs, key.decides, key.fields) == (field.option.inputs, field.option.decides, field.option.fields)
        assert key.about and key.about in schema[field.key]["description"], field.name


@pytest.mark.parametrize("app", [convert_app, quant_app], ids=["convert", "quant"])
def test_every_option_of_a_single_model_has_a_key_or_a_reason(app: typer.Typer) -> None:
    named = " ".join(KEYLESS).replace(",", "").split()
    keys = {field.flag: field.key for record in RECORDS for field in declared(record)}
    for parameter in typer.main.get_command(app).params:
        for option in parameter.opts if not parameter.is_eager else ():  # --version makes no model
            if option.startswith("--"):
                assert option in named or keys[option] in MODELS, option


def test_reasons_are_for_options_that_there_are() -> None:
    there = {each for app in (convert_app, quant_app) for p in typer.main.get_command(app).params for each in p.opts}
    assert {word for word in " ".join(KEYLESS).replace(",", "").split() if word.startswith("--")} <= there
