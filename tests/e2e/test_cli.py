"""The `pixtral` command: answers, tables, JSON, conversations, errors in one line, exit codes, and a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import pixtral
from pixtral.assets import demo_image_path, tiny_path
from pixtral.cli.main import app
from pixtral.cli.options import looks_like_model, model_and_question
from pixtral.cli.session import Session, _unquoted

IMAGE = str(demo_image_path())
TINY = str(tiny_path())
QUESTION = "What is in the picture?"
COMMAND = [sys.executable, "-m", "pixtral.cli"]


@pytest.fixture
def cli():
    """Run the command in this process."""
    return lambda *words, stdin=None: CliRunner().invoke(app, list(map(str, words)), input=stdin)


@pytest.fixture(scope="session")
def expected():
    return pixtral.load().chat(QUESTION, IMAGE)


def test_a_question_with_prompt_lookup_and_a_small_cache(cli, expected):
    result = cli("chat", "-i", IMAGE, "--prompt-lookup", 6, "--kv-cache", "bf16", QUESTION)
    assert (result.exit_code, result.stdout) == (0, expected.text + "\n")
    line = only_error(cli("chat", "-i", IMAGE, "--kv-cache", "int3", QUESTION))
    assert "kv_cache is 'int3', expected 'bf16', 'int8'" in line
    assert cli("chat", "--prompt-lookup", 0, QUESTION).exit_code == 2


@pytest.fixture(scope="session")
def quantized(tmp_path_factory):
    """The embedded model in 4 bits, made by the command; and what it printed."""
    folder = tmp_path_factory.mktemp("quantized") / "tiny-int4"
    result = CliRunner().invoke(app, ["quantize", TINY, str(folder), "--to", "int4", "--quantize-vision"])
    assert result.exit_code == 0, result.stderr
    return folder, result.stdout


def test_a_quantized_folder_is_complete(cli, quantized, expected):
    folder, printed = quantized
    rows = [re.split(r"  +", line.strip()) for line in printed.splitlines() if "bits, groups" in line]
    assert ["decoder", "4 bits, groups of 64", "28", "0.6", "4.28"] in rows
    assert {row[0] for row in rows} == {"vision tower", "projector", "decoder", "output layer"}
    assert f"{folder}: 0.003 GB (was 0.006 GB)" in printed
    result = cli("chat", folder, "-i", IMAGE, "--json", QUESTION)
    assert json.loads(result.stdout)["text"] == expected.text
    result = cli("chat", folder, "-i", IMAGE, "--quantization", "int4", "--activations", "bf16", QUESTION)
    assert (result.exit_code, result.stdout) == (0, expected.text + "\n")
    facts = json.loads(cli("inspect", folder, "--json").stdout)
    assert facts["ok"] and facts["tokenizer"] == "hf"
    assert facts["total_parameters"] == json.loads(cli("inspect", TINY, "--json").stdout)["total_parameters"]
    decoder = next(one for one in facts["quantization"] if one["part"] == "decoder")
    assert decoder == {
        "part": "decoder",
        "format": "4 bits, groups of 64",
        "layers": 28,
        "parameters": 1130496,
        "nbytes": 604416,
        "bits": 4.277,
    }
    assert "4 bits, groups of 64" in cli("inspect", folder).stdout


def test_quantizing_from_mistrals_layout_as_json(cli, tmp_path, quantized):
    result = cli(
        "quantize", TINY, tmp_path / "out", "--layout", "mistral", "--quantize-vision", "--json", "--threads", 1
    )
    facts = json.loads(result.stdout)
    assert facts["folder"] == str(tmp_path / "out")
    assert set(facts["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert facts["bytes"] < facts["bytes_before"] / 2
    made, again = (folder / "model.safetensors" for folder in (quantized[0], tmp_path / "out"))
    assert made.read_bytes() == again.read_bytes()


def test_a_question_to_a_model_that_is_quantized_while_it_loads(cli, expected):
    result = cli("chat", "-i", IMAGE, "--quantization", "int8", "--threads", 1, QUESTION)
    assert (result.exit_code, result.stdout) == (0, expected.text + "\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["chat", "--quantization", "int3", QUESTION], "quantization is 'int3'; expected 'int4' or 'int8'"),
        (["chat", "--quantize-vision", QUESTION], "found quantize_vision=True, but nothing asks to quantize"),
        (["chat", "--threads", "0", QUESTION], "threads is 0; expected 1 or more"),
        (["quantize", TINY, "OUT", "--to", "int3"], "quantization is 'int3'"),
        (["quantize", TINY, "OUT", "--group-size", "128"], "columns, which groups of 128 do not divide"),
        (["quantize", TINY, "OUT", "--group-size", "48"], "group_size is 48; expected one of"),
        (["quantize", TINY, "OUT", "--lm-head-bits", "2"], "lm_head_bits is 2; expected one of"),
        (["quantize", TINY, "OUT", "--threads", "0"], "threads is 0; expected 1 or more"),
        (["quantize", TINY, TINY], "is there already and not empty; choose another folder"),
        (["quantize", "./nowhere", "OUT"], "no folder './nowhere' here"),
        (["quantize", "QUANTIZED", "OUT", "--quantize-vision"], "is quantized already; quantize the original"),
        (["quantize", "QUANTIZED", "OUT", "--to", "int8"], "the weights are quantized already, as"),
        (["chat", "QUANTIZED", QUESTION, "--quantization", "int8"], "the weights are quantized already, as"),
    ],
)
def test_quantization_that_is_refused(cli, quantized, words, says, tmp_path):
    names = {"OUT": str(tmp_path / "out"), "QUANTIZED": str(quantized[0])}
    assert says in only_error(cli(*(names.get(word, word) for word in words)))
    assert list(tmp_path.iterdir()) == []


def only_error(result, *, code=1):
    """The one line on stderr of a command that failed."""
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_question(cli, expected):
    result = cli("chat", "-i", IMAGE, QUESTION)
    assert result.exit_code == 0
    assert result.stdout == expected.text + "\n"
    assert result.stderr == ""


def test_a_question_to_a_named_model(cli, expected, server):
    assert cli("chat", TINY, QUESTION, "-i", IMAGE).stdout == expected.text + "\n"
    assert cli("chat", "-m", TINY, QUESTION, "-i", IMAGE, "--layout", "mistral").exit_code == 0
    by_url = cli("chat", QUESTION, "-i", f"{server}/dog.png", "-i", f"{server}/mountain.png", "--json")
    assert [image["width"] for image in json.loads(by_url.stdout)["images"]] == [100, 128]


def test_json(cli, expected):
    result = cli("chat", "-i", IMAGE, QUESTION, "--json")
    made = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert made["text"] == expected.text
    assert made["finish_reason"] == expected.finish_reason
    assert made["usage"] == expected.usage.to_dict()
    assert set(made["timings"]) >= {"load", "prepare", "image", "prompt", "first_token", "per_token", "total"}
    assert made["model"].endswith("tiny")


def test_options_reach_the_model(cli):
    made = json.loads(cli("chat", "-i", IMAGE, QUESTION, "--json", "-n", 2, "--max-image-size", 64).stdout)
    assert made["usage"]["completion_tokens"] == 2
    assert made["finish_reason"] == "length"
    assert made["images"][0]["tokens"] == 20
    plain, told = (
        json.loads(cli("chat", QUESTION, "--json", "-n", 1, *system).stdout)
        for system in ([], ["--system", "Be brief."])
    )
    assert told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert cli("chat", QUESTION, "-n", 20, "--stop", "e").stdout.count("e") == 0
    drawn = [
        cli("chat", QUESTION, "--temperature", 9, "--top-p", 0.99, "--seed", seed, "-n", 8).stdout for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_question_from_standard_input(cli, expected):
    assert cli("chat", "-i", IMAGE, "-", stdin=QUESTION + "\n").stdout == expected.text + "\n"
    assert "standard input is empty" in only_error(cli("chat", "-", stdin=""))


def test_a_conversation_in_a_pipe(cli, expected):
    lines = [f"/image {IMAGE}", QUESTION, "How many shapes are there?", "/reset", f"/image '{IMAGE}'", QUESTION]
    result = cli("chat", stdin="\n".join([*lines, "/exit", "What?"]))
    answers = result.stdout.splitlines()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert answers[0] == answers[2] == expected.text
    assert len(answers) == 3


def test_what_a_conversation_remembers(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/image {IMAGE}\n{QUESTION}\nHow many?\n"))
    session = Session(pixtral.load(device_map="cpu"), None, {"max_new_tokens": 3}, [Image.open(IMAGE)], "tiny")
    assert session.run() == 0
    roles = [message["role"] for message in session.conversation.messages]
    assert roles == ["user", "assistant"] * 2
    images = [str(message["content"]).count("'image':") for message in session.conversation.messages]
    assert images == [2, 0, 0, 0]  # both with the first question, and not again
    monkeypatch.setattr(sys, "stdin", io.StringIO("/reset\n"))
    session.run()
    assert session.conversation.messages == []


def test_a_conversation_goes_on_after_an_error(cli, expected):
    result = cli("chat", "-i", IMAGE, stdin=f"/image nowhere.png\n/image\n/what\n{QUESTION}\n")
    assert result.stdout == expected.text + "\n"
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error"] * 3
    assert result.exit_code == 1
    assert "/reset" in cli("chat", stdin="/help\n").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", ""], "the question is empty"),
        (["chat", "-i", "nowhere.png", QUESTION], "nowhere.png"),
        (["chat", "./nowhere", QUESTION], "no folder './nowhere'"),
        (["chat", "./nowhere"], "no folder './nowhere'"),
        (["chat", "What is", "this?"], "no folder 'What is'"),
        (["chat", QUESTION, "--dtype", "float31"], "dtype is 'float31'"),
        (["chat", QUESTION, "--layout", "gguf"], "layout is 'gguf'"),
        (["chat", QUESTION, "--device-map", "abacus"], "abacus"),
        (["inspect", "./nowhere"], "no folder './nowhere'"),
        (["inspect", "nowhere.png"], "nowhere.png"),
        (["inspect", IMAGE, "--save", "/dev/null/x.png"], "cannot write"),
        (["demo", "-i", "nowhere.png"], "nowhere.png"),
    ],
)
def test_errors_are_one_line(cli, words, message):
    assert message in only_error(cli(*words))


def test_broken_files_are_one_line(cli, tmp_path):
    broken, empty, text = tmp_path / "broken.png", tmp_path / "empty.png", tmp_path / "text.png"
    broken.write_bytes(Path(IMAGE).read_bytes()[:500])
    empty.write_bytes(b"")
    text.write_text("not an image")
    for path in (broken, empty, text):
        assert str(path) in only_error(cli("chat", "-i", path, QUESTION))
        assert str(path) in only_error(cli("inspect", path))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_path() / name, tmp_path)
    assert "no tokenizer" in only_error(cli("chat", tmp_path, QUESTION))
    (tmp_path / "model.safetensors").write_bytes((tiny_path() / "model.safetensors").read_bytes()[:10_000])
    shutil.copy(tiny_path() / "tokenizer.json", tmp_path)
    shutil.copy(tiny_path() / "chat_template.jinja", tmp_path)
    assert "model.safetensors" in only_error(cli("chat", tmp_path, QUESTION))


@pytest.mark.parametrize(
    "words",
    [
        ["what"],
        ["chat", "a", "b", "c"],
        ["chat", "--nothing"],
        ["chat", "-m", TINY, "a", "b"],
        ["chat", "--json"],
        ["chat", QUESTION, "--top-p", "2"],
        ["chat", QUESTION, "-n", "none"],
    ],
)
def test_wrong_usage_is_exit_code_2(cli, words):
    result = cli(*words)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_a_word_that_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "cat.jpg").touch()
    for word in ("model", "mistralai/Pixtral-12B-2409", "./typo", "../typo", "~/typo", "/typo"):
        assert looks_like_model(word), word
    for word in ("question?", "yes/no?", "Is it a/b or c", "cat.jpg", "./cat.jpg", "a/b/c", "and/or what"):
        assert not looks_like_model(word), word
    assert model_and_question(None, None, None) == (None, None)
    assert model_and_question("what?", None, None) == (None, "what?")
    assert model_and_question("model", None, None) == ("model", None)
    assert model_and_question("model", None, "other") == ("other", "model")
    assert model_and_question("anything", "what?", None) == ("anything", "what?")


def test_paths_as_terminals_paste_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.png").touch()
    for pasted in ("a b.png", "'a b.png'", '"a b.png"', r"a\ b.png"):
        assert _unquoted(pasted) == "a b.png"
    assert _unquoted("http://host/it's.png") == "http://host/it's.png"
    assert _unquoted("it's.png") == "it's.png"


def test_inspecting_images(cli, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (1030, 1080)).save(other)
    result = cli("inspect", IMAGE, other)
    rows = [re.split(r"\s{2,}", line) for line in result.stdout.splitlines()]
    assert rows[0] == ["image", "size", "resized", "grid", "tokens", "rounding"]
    assert rows[1] == [IMAGE, "144 x 112", "144 x 112", "7 rows x 9", "70", "either"]
    assert rows[2][1:] == ["1030 x 1080", "976 x 1024", "64 rows x 61", "3,968", "hf"]
    assert rows[3][1:] == ["1030 x 1080", "992 x 1024", "64 rows x 62", "4,032", "mistral"]
    facts = json.loads(cli("inspect", IMAGE, other, "--json").stdout)
    assert facts[0] == {
        "image": IMAGE,
        "width": 144,
        "height": 112,
        "resized_width": 144,
        "resized_height": 112,
        "rows": 7,
        "cols": 9,
        "tokens": 70,
    }
    assert facts[1]["rounding"]["mistral"]["tokens"] == 4032
    small = json.loads(cli("inspect", IMAGE, "--max-image-size", 64, "--patch-size", 8, "--json").stdout)
    assert (small["rows"], small["cols"], small["resized_width"]) == (7, 8, 64)


def test_inspecting_goes_on_after_an_error(cli, tmp_path):
    result = cli("inspect", "nowhere.png", IMAGE, tmp_path)
    assert result.exit_code == 1
    assert IMAGE in result.stdout
    assert "problem: no weights" in result.stdout
    assert "nowhere.png" in result.stderr


def test_the_grid_drawn_on_an_image(cli, tmp_path):
    plain = tmp_path / "plain.png"
    Image.new("RGB", (600, 500), (90, 140, 200)).save(plain)
    assert cli("inspect", plain, "--save", tmp_path / "new" / "grid.png").exit_code == 0
    with Image.open(tmp_path / "new" / "grid.png") as file:
        drawn = file.convert("RGB")
    assert drawn.size == (608, 512)
    assert drawn.getpixel((5, 5)) == (90, 140, 200)
    assert drawn.getpixel((16, 5)) != drawn.getpixel((15, 5)) != (90, 140, 200) != drawn.getpixel((5, 32))
    cli("inspect", IMAGE, plain, "--save", tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["01-demo.png", "02-plain.png"]
    with Image.open(tmp_path / "folder" / "01-demo.png") as file:
        assert file.size == (144 * 4, 112 * 4)  # enlarged, to be seen


def test_inspecting_nothing_is_the_embedded_model(cli):
    result = cli("inspect", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["layout"] == "hf"
    assert facts["total_parameters"] == sum(facts["parameters"].values()) > 10**6


def test_inspecting_a_model(cli, tmp_path):
    result = cli("inspect", TINY)
    assert result.exit_code == 0
    assert re.search(r"^layout +hf, not read: mistral$", result.stdout, re.MULTILINE)
    assert re.search(r"^vision tower +[\d,]+ +[\d.]+%$", result.stdout, re.MULTILINE)
    assert result.stdout.splitlines()[-1] == "ok: it can be loaded"
    facts = json.loads(cli("inspect", TINY, "--layout", "mistral", "--json").stdout)
    assert facts["layout"] == "mistral"
    assert facts["tokenizer"] == "hf"
    assert facts["ok"] is True
    assert facts["dtypes"] == {"bfloat16": facts["total_parameters"]}
    assert sum(facts["parameters"].values()) == facts["total_parameters"] == pixtral.load().model.num_parameters()
    assert facts["missing"] == facts["unexpected"] == []


def test_inspecting_a_broken_model(cli, tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    values = json.loads(config.read_text())
    values["text_config"]["num_hidden_layers"] += 1
    config.write_text(json.dumps(values))
    result = cli("inspect", tmp_path / "model")
    assert result.exit_code == 1
    assert re.search(r"^missing \(\d+\):$", result.stdout, re.MULTILINE)
    assert "problem: " in result.stdout
    made = cli("inspect", tmp_path / "model", "--json")
    assert made.exit_code == 1
    assert json.loads(made.stdout)["ok"] is False


def test_the_demonstration(cli, expected):
    result = cli("demo")
    assert result.exit_code == 0
    assert f"> {QUESTION}\n{expected.text}\n" in result.stdout
    assert result.stdout.count("prompt tokens (70 of them image)") == 3
    assert "▀" not in result.stdout
    assert "\x1b" not in result.stdout
    made = json.loads(cli("demo", "--json").stdout)
    assert made["answers"][0]["text"] == expected.text


def run(*words, **options):
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=120, **options)


def test_help_and_version_load_hardly_anything():
    """What takes time before a command says something is what it imports: of other packages typer's alone."""
    for word in ("--help", "--version"):
        code = (
            "import sys, atexit\n"
            f"before, sys.argv = set(sys.modules), ['pixtral', {word!r}]\n"
            "atexit.register(lambda: print(*sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
            "from pixtral.cli.main import main\nmain()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *said, loaded = done.stdout.splitlines()
        others = set(loaded.split()) - set(sys.stdlib_module_names)
        assert others <= {"pixtral", "typer", "click", "shellingham", "annotated_doc", "typing_extensions", "colorama"}
        assert not set(loaded.split()) & {"asyncio", "http", "multiprocessing", "sqlite3", "ssl", "unittest"}
    assert said == [f"pixtral {pixtral.__version__}"]
    assert run("--version").stdout == f"pixtral {pixtral.__version__}\n"
    shown = run("--help").stdout
    assert all(f"\n  {name} " in shown for name in ("chat", "inspect", "demo"))
    assert cli_help_of_nothing().returncode == 2


def cli_help_of_nothing():
    return run()


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(f"{sys.executable} -m pixtral.cli inspect {IMAGE} | true", shell=True, capture_output=True)
    assert b"Traceback" not in done.stderr
    assert b"Error" not in done.stderr


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, *words):
        pid, self.fd = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell may ignore it
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS="100", LINES="40")
            os.execv(sys.executable, [*COMMAND, *words])
        self.pid, self.seen, self.read_to = pid, "", 0

    def until(self, text, *, seconds=30):
        """What is printed next, up to and with this text."""
        end = time.monotonic() + seconds
        while (place := self.seen.find(text, self.read_to)) < 0:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"waited for {text!r}, saw {self.seen[self.read_to :]!r}"
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        start, self.read_to = self.read_to, place + len(text)
        return self.seen[start : self.read_to]

    def send(self, text):
        os.write(self.fd, text.encode())

    def exit_code(self):
        while True:
            try:
                if not (data := os.read(self.fd, 65536)):
                    break
            except OSError:
                break
            self.seen += data.decode(errors="replace")
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_conversation_in_a_terminal(expected):
    terminal = Terminal("chat")
    terminal.until("> ")
    terminal.send(f"/image {IMAGE}\r")
    assert "144 x 112 pixels" in terminal.until("next question")
    terminal.until("> ")
    terminal.send(f"{QUESTION}\r")
    shown = terminal.until("tokens/s")
    assert expected.text in shown
    assert "70 of them image" in shown
    terminal.until("> ")
    terminal.send("half a line")
    terminal.until("half a line")
    time.sleep(0.3)  # readline notices a signal only when it waits for a key
    terminal.send("\x03")  # Ctrl-C at the prompt does not end it
    terminal.until("Ctrl-D ends")
    terminal.until("> ")
    terminal.send("\x04")
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.seen


def test_the_demonstration_in_a_terminal(expected):
    terminal = Terminal("demo")
    assert terminal.exit_code() == 0
    assert "▀" in terminal.seen
    assert "\x1b[38;2;" in terminal.seen
    assert expected.text in terminal.seen
    assert "Traceback" not in terminal.seen


def test_ctrl_c_stops_an_answer():
    from pixtral.cli.session import stopped_by_interrupt

    before = signal.getsignal(signal.SIGINT)
    stream = pixtral.load(device_map="cpu").chat("Hello", stream=True, temperature=9.0, max_new_tokens=4000)
    with stopped_by_interrupt(stream):
        next(stream)
        os.kill(os.getpid(), signal.SIGINT)
        answer = stream.answer
        assert signal.getsignal(signal.SIGINT) is before  # a second one would be an ordinary interrupt
    assert answer.finish_reason == "abort"
    assert answer.usage.completion_tokens < 50
    assert signal.getsignal(signal.SIGINT) is before


def test_the_page_of_the_command_is_up_to_date():
    import runpy

    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "generate_cli.py"))["page"]()
    assert (docs / "cli.md").read_text() == page, "run: python docs/generate_cli.py"
