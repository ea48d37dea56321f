"""`quantize_checkpoint`: what a load would have quantized, written beside its other files, whole or not at all."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_same, prefixed, write_hf, write_mistral, write_weights
from random_models import packable_dict
from safetensors.torch import load_file

from pixtral.checkpoints import load_model, save_model
from pixtral.checkpoints.layout import find
from pixtral.checkpoints.quantize import Quantized, quantize_checkpoint
from pixtral.checkpoints.safetensors_io import FileWriter
from pixtral.configuration import QuantizationConfig
from pixtral.errors import CheckpointError, ConfigError
from pixtral.models import NETWORKS
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM
from pixtral.quantization import QuantizationArguments

INT4 = QuantizationConfig()


def quantize(folder: Path, out: Path, config: QuantizationConfig = INT4, **arguments: Any) -> Quantized:
    return quantize_checkpoint(find(folder), out, config, NETWORKS, **arguments)


def load(folder: Path, asked: QuantizationArguments | None = None, **arguments: Any) -> LlavaForConditionalGeneration:
    return load_model(LlavaForConditionalGeneration, folder, asked=asked, **arguments)


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def both_tied(folder: Path, config: dict[str, Any]) -> None:
    """A tied model whose file has the output layer too."""
    state = write_hf(folder, config=config)
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
    write_weights(folder, {prefixed(n, "classic"): v for n, v in state.items()}, "model")


SOURCES: dict[str, tuple[Callable[[Path, dict[str, Any]], object], dict[str, Any]]] = {
    "hf": (lambda folder, config: write_hf(folder, config=config), {}),
    "hf, shards": (lambda folder, config: write_hf(folder, shards=3, config=config), {}),
    "mistral": (lambda folder, config: write_mistral(folder, config=config), {}),
    "tied": (lambda folder, config: write_hf(folder, config=config), {"tie_word_embeddings": True}),
    "tied, both in the file": (both_tied, {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("config", [INT4, QuantizationConfig(8, 32, 16, True)])
def test_it_is_what_a_load_quantizes(name: str, config: QuantizationConfig, tmp_path: Path) -> None:
    write, change = SOURCES[name]
    write(tmp_path / "plain", packable_dict(**change))
    made = quantize(tmp_path / "plain", tmp_path / "out", config)
    again, expected = load(tmp_path / "out"), load(tmp_path / "plain", QuantizationArguments(config=config))
    assert_same(again.state_dict(), expected.state_dict())
    assert again.quantizer.stored and again.quantizer.config == config  # type: ignore[union-attr]
    expected.config.architectures = ["LlavaForConditionalGeneration"]  # written by every save
    assert again.config == expected.config
    save_model(expected, tmp_path / "saved")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert_same(stored, load_file(tmp_path / "saved" / "model.safetensors"))
    out, saved = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "saved"))
    assert out == saved
    assert made.files == ("model.safetensors", "config.json")
    assert made.before == sum(
        v.nbytes for f in (tmp_path / "plain").glob("*.safetensors") for v in load_file(f).values()
    )
    assert made.after == sum(value.nbytes for value in stored.values()) < made.before
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "out", "saved"}


def test_a_decoder_alone(tmp_path: Path) -> None:
    write_hf(tmp_path / "plain", config=packable_dict())
    save_model(load_model(MistralForCausalLM, tmp_path / "plain"), tmp_path / "text")
    quantize(tmp_path / "text", tmp_path / "out")
    expected = load_model(MistralForCausalLM, tmp_path / "plain", asked=QuantizationArguments("int4"))
    assert_same(load_model(MistralForCausalLM, tmp_path / "out").state_dict(), expected.state_dict())


def test_dtype_shards_and_other_files(tmp_path: Path) -> None:
    write_hf(tmp_path / "plain", config=packable_dict())
    (tmp_path / "tokenizer.json").write_text("{}")
    made = quantize(
        tmp_path / "plain",
        tmp_path / "deep" / "out",
        dtype=torch.bfloat16,
        max_shard_size="30KB",
        copies=[tmp_path / "tokenizer.json"],
    )
    assert set(made.files) == listing(tmp_path / "deep" / "out")
    assert len([name for name in made.files if name.startswith("model-")]) > 2
    again = load(tmp_path / "deep" / "out")
    assert again.dtype == torch.bfloat16
    assert_same(
        again.state_dict(), load(tmp_path / "plain", QuantizationArguments("int4"), dtype="bfloat16").state_dict()
    )
    assert (tmp_path / "deep" / "out" / "tokenizer.json").read_text() == "{}"


def test_what_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "plain", config=packable_dict())
    quantize(tmp_path / "plain", tmp_path / "out")
    before = listing(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"out is there already and not empty; choose another folder, or remove it"
    ):
        quantize(tmp_path / "plain", tmp_path / "out")
    with pytest.raises(CheckpointError, match="plain is there already"):
        quantize(tmp_path / "plain", tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"config.json is there already"):
        quantize(tmp_path / "plain", tmp_path / "plain" / "config.json")
    with pytest.raises(CheckpointError, match=r"is quantized already; quantize the original checkpoint"):
        quantize(tmp_path / "out", tmp_path / "new")
    with pytest.raises(ConfigError, match=r"quantized already, as .*bits=4.*, and asked for is .*bits=8"):
        quantize(tmp_path / "out", tmp_path / "new", QuantizationConfig(8))
    with pytest.raises(ConfigError, match="groups of 128 do not divide"):
        quantize(tmp_path / "plain", tmp_path / "new", QuantizationConfig(group_size=128))
    with pytest.raises(ConfigError, match="max_shard_size is '5 parsecs'"):
        quantize(tmp_path / "plain", tmp_path / "new", max_shard_size="5 parsecs")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("pixtral.checkpoints.quantize.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"has 0.0 MB free, the model takes 0.\d MB; make room"):
        quantize(tmp_path / "plain", tmp_path / "new")
    assert listing(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "out"}


def test_a_checkpoint_that_does_not_fit_its_configuration(tmp_path: Path) -> None:
    state = write_hf(tmp_path / "plain", config=packable_dict())
    del state["lm_head.weight"]
    write_weights(tmp_path / "plain", {prefixed(n, "classic"): v for n, v in state.items()}, "model")
    with pytest.raises(CheckpointError, match=r"1 parameters missing \(lm_head.weight\)"):
        quantize(tmp_path / "plain", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


@pytest.mark.parametrize("fail_at", [0, 20, 63])
def test_a_full_disk_leaves_nothing(fail_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "plain", config=packable_dict())
    real, calls = FileWriter.write, []

    def write(self: FileWriter, name: str, tensor: torch.Tensor) -> None:
        calls.append(name)
        if len(calls) > fail_at:
            raise OSError(28, "No space left on device")
        real(self, name, tensor)

    monkeypatch.setattr(FileWriter, "write", write)
    with pytest.raises(CheckpointError, match=r"cannot write to .*No space left on device; .*the room"):
        quantize(tmp_path / "plain", tmp_path / "out")
    assert len(calls) == fail_at + 1
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


def test_a_write_that_really_fails_leaves_nothing(tmp_path: Path) -> None:
    write_hf(tmp_path / "plain", config=packable_dict())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # bytes of one file
    try:
        with pytest.raises(CheckpointError, match=r"cannot write to .*File too large"):
            quantize(tmp_path / "plain", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


KILLS = """
import json, os, signal, sys
from pathlib import Path
from pixtral.checkpoints import load_model, save_model
from pixtral.checkpoints.layout import find
from pixtral.checkpoints.quantize import quantize_checkpoint
from pixtral.checkpoints import safetensors_io
from pixtral.checkpoints import save
from pixtral.checkpoints import save
from pixtral.configuration import QuantizationConfig
from pixtral.errors import CheckpointError
from pixtral.models import NETWORKS
from pixtral.models.llava import LlavaForConditionalGeneration as Model

def dies_at(count, *places):
    '''Kill this process before the call number `count` of these functions.'''
    left = [count]
    for owner, name in places:
        def call(*arguments, real=getattr(owner, name), **more):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*arguments, **more)
        setattr(owner, name, call)

def killed(run, moment, *places):
    '''Whether the run was killed at that moment; False when it ended first.'''
    child = os.fork()
    if not child:
        dies_at(moment, *places)
        run()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL

def state(folder):
    try:
        return [float(p.detach().float().sum()) for p in load_model(Model, folder).parameters()]
    except CheckpointError as error:
        return str(error)

def moments(run, places, look, step):
    found, moment = [], 0
    while killed(run, moment, *places):
        found.append(look())
        moment += step
    return found

plain, out, saved = map(Path, sys.argv[1:])
quantized = moments(
    lambda: quantize_checkpoint(find(plain), out, QuantizationConfig(8), NETWORKS),
    [(safetensors_io.FileWriter, "write"), (safetensors_io.os, "fsync"), (save.os, "replace")],
    lambda: [state(out), sorted(p.name for p in out.parent.iterdir())], 16,
)
end = [state(out), sorted(p.name for p in out.parent.iterdir())]

first, second = load_model(Model, plain), load_model(Model, plain)
for parameter in second.parameters():
    parameter.data.add_(1)
both = [[float(p.detach().float().sum()) for p in one.parameters()] for one in (first, second)]
save_model(first, saved, max_shard_size="100KB")
overwritten = moments(
    lambda: save_model(second, saved, max_shard_size="100KB"),
    [(safetensors_io.os, "fsync"), (save.os, "replace"), (Path, "unlink")], lambda: state(saved), 1,
)
result = dict(quantized=quantized, end=end, overwritten=overwritten, both=both, last=state(saved))
print(json.dumps(dict(result, names=sorted(p.name for p in saved.iterdir()))))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_killed_run_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """Real kills, at every sixteenth step of a quantization and at every one of a save over an older model."""
    write_hf(tmp_path / "plain", config=packable_dict(text={"num_hidden_layers": 2}))
    (tmp_path / "there").mkdir()
    arguments = [sys.executable, "-W", "error::UserWarning", "-c", KILLS]
    folders = [str(tmp_path / "plain"), str(tmp_path / "there" / "out"), str(tmp_path / "saved")]
    result = json.loads(subprocess.run([*arguments, *folders], check=True, capture_output=True, text=True).stdout)
    assert len(result["quantized"]) > 3
    for state, names in result["quantized"]:
        assert "no folder" in state
        assert names == [".out.partial"]
    assert isinstance(result["end"][0], list)
    assert result["end"][1] == ["out"]
    seen = [state if isinstance(state, str) else result["both"].index(state) for state in result["overwritten"]]
    assert 0 in seen and result["last"] == result["both"][1]
    for state in seen:
        assert state in (0, 1) or "but no config.json" in state, state
    assert not [name for name in result["names"] if name.startswith(".")]
