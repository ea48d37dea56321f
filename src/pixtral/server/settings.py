"""Settings of the server: every flag with its help, read from the command line, the environment and a file.

One dataclass is the source of the command's options, of the names in environment and file, and of the page about them.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixtral.errors import ConfigError, nearest

PREFIX = "PIXTRAL_"
_OTHERS = ("PIXTRAL_ISA",)  # of the kernels


def _option(default: Any, help: str, metavar: str = "", *, low: float | None = None, secret: bool = False) -> Any:
    return dataclasses.field(default=default, repr=not secret, metadata={"help": help, "metavar": metavar, "low": low})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of `pixtral serve`, made by `load_settings`."""

    model: str | None = _option(
        None, "A folder or Hub id (owner/name); the small model inside this package if left out.", "MODEL"
    )
    served_model_name: str | None = _option(
        None, "What clients call the model; the folder's name or the Hub id if left out.", "NAME"
    )
    host: str = _option("127.0.0.1", "Address to listen on; others than this machine's own need --api-key.", "ADDRESS")
    port: int = _option(8000, "Port to listen on; 0 takes a free one and prints it.", "PORT", low=0)
    api_key: str | None = _option(
        None, "Key that clients must send; better given as PIXTRAL_API_KEY, which ps does not show.", "KEY", secret=True
    )
    no_auth: bool = _option(False, "Listen on other addresses without a key.")
    max_model_len: int | None = _option(
        None, "Tokens of prompt and answer together; what model and cache hold if left out.", "TOKENS", low=2
    )
    max_num_seqs: int = _option(32, "Answers that are written at a time; more wait.", "INTEGER", low=1)
    max_num_batched_tokens: int = _option(2048, "Prompt tokens that one step reads at most.", "TOKENS", low=1)
    queue_limit: int = _option(128, "Requests that may wait; the next gets 429 with Retry-After.", "INTEGER", low=0)
    request_timeout: float = _option(600.0, "Seconds that a request may take, waiting included.", "SECONDS", low=0.001)
    grace_period: float = _option(
        30.0, "Seconds that running answers get to finish when the server is stopped.", "SECONDS", low=0
    )
    max_images: int = _option(16, "Images in a request, pages of PDFs included.", "INTEGER", low=0)
    max_image_pixels: int = _option(
        33_554_432, "Width x height of an image, checked before it is decoded.", "PIXELS", low=1
    )
    max_image_size: int | None = _option(
        None, "Scale images down to this longest side; the model's own if left out.", "PIXELS", low=1
    )
    max_pdf_pages: int = _option(8, "Pages of one PDF; each is an image.", "INTEGER", low=0)
    low_detail_tokens: int = _option(256, "Tokens that an image with detail 'low' takes at most.", "TOKENS", low=2)
    max_body_mb: float = _option(32.0, "Megabytes of a request's body, images included.", "MB", low=0.001)
    allow_remote_images: bool = _option(False, "Fetch images by http(s) from public addresses.")
    quantization: str | None = _option(None, "Pack the decoder's weights while they are read: int4 or int8.", "SCHEME")
    quantize_vision: bool = _option(False, "Also quantize the vision tower's and the projector's, in 8 bits.")
    activations: str | None = _option(None, "What goes into quantized layers: int8 (the default) or bf16.", "FORMAT")
    kv_cache: str | None = _option(
        None, "Number format of keys and values: bf16 or int8; the model's own if left out.", "FORMAT"
    )
    kv_cache_mb: int = _option(1024, "Megabytes for keys and values.", "MB", low=1)
    image_cache_mb: int = _option(256, "Megabytes for features of images that may come again.", "MB", low=0)
    prompt_lookup: int | None = _option(
        None, "Check this many tokens at once that stood in the text before.", "INTEGER", low=1
    )
    dtype: str = _option("auto", "Number format of the weights: auto (as stored), bfloat16, float16, float32.", "DTYPE")
    device_map: str = _option(
        "auto", "Where the model runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.", "DEVICE"
    )
    threads: int | None = _option(None, "CPU threads; as many as there are cores if left out.", "INTEGER", low=1)
    layout: str = _option("auto", "Files to read of a folder that holds both layouts: auto, hf, mistral.", "LAYOUT")
    revision: str | None = _option(None, "Branch, tag or commit on the Hub.", "NAME")
    cache_dir: str | None = _option(None, "Where the Hub's files are kept.", "FOLDER")
    local_files_only: bool = _option(False, "Never use the network to find the model.")
    cors_origin: tuple[str, ...] = _option(
        (),
        "Web page origin that may use the server from a browser (https://host), or *; may be given several times.",
        "ORIGIN",
    )
    allowed_host: tuple[str, ...] = _option(
        (),
        "Host name that is answered without a key, beside this machine's own, or *; for a proxy in front.",
        "NAME",
    )
    log_format: str = _option("text", "Log lines: text or json. Prompts and answers are never logged.", "FORMAT")
    log_level: str = _option("info", "What is logged: debug, info, warning or error.", "LEVEL")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.port > 65535:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535")
        _one_of("log_format", self.log_format, ("text", "json"))
        _one_of("log_level", self.log_level, ("debug", "info", "warning", "error"))
        if self.api_key is not None and not self.api_key.isascii():
            raise ConfigError("api_key has characters that are not ASCII, expected letters, digits and signs")
        if self.api_key == "":
            raise ConfigError("api_key is empty; leave it out, or give it characters")
        if self.api_key is None and not self.no_auth and not is_loopback(self.host):
            raise ConfigError(
                f"host is {self.host!r}, which others can reach, but there is no api_key; set PIXTRAL_API_KEY, or say "
                "--no-auth if everybody may use the model"
            )

    @property
    def max_body_bytes(self) -> int:
        """Maximum bytes of a request's body."""
        return round(self.max_body_mb * 1_000_000)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    if host == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_settings(
    given: Mapping[str, Any], environment: Mapping[str, str], file: str | None = None
) -> tuple[Settings, list[str]]:
    """Settings from the command line, then the environment, then a file, then their defaults; and remarks.

    Args:
        given: options of the command line; None and () mean not given.
        environment: variables such as PIXTRAL_MAX_NUM_SEQS.
        file: a TOML file with the same names in small letters.

    Raises:
        ConfigError: an unknown name, or an invalid value.
    """
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in _read(file).items():
        if name not in fields:
            raise ConfigError(f"{file} has the unknown setting {name!r}; {nearest(name, fields)}")
        values[name] = tuple(value) if isinstance(value, list) else value
    remarks = []
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in _OTHERS or variable == f"{PREFIX}CONFIG":
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in fields:
            values[name] = _parsed(variable, text, kind_of(fields[name]))
        else:
            remarks.append(f"the environment variable {variable} is not known; {nearest(name, fields)}")
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    values |= {name: value for name, value in options.items() if value is not None and value != ()}
    return Settings(**values), remarks


def kind_of(field: dataclasses.Field[Any]) -> type:
    """str, int, float, bool or tuple: the first type in the annotation of a field."""
    kinds = {one.__name__: one for one in (str, int, float, bool, tuple)}
    return kinds[str(field.type).partition(" ")[0].partition("[")[0]]


def _read(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # the extra "server" brings it

    try:
        values: dict[str, Any] = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        return values
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _parsed(variable: str, text: str, kind: type) -> Any:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        if kind is bool:
            return words[text.strip().lower()]
        if kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise ConfigError(f"{variable} is {text!r}, expected {wanted}") from None


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    if value is None and field.default is None:
        return
    kind = kind_of(field)
    good = isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))
    if kind is float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is tuple:
        good = good and all(isinstance(one, str) for one in value)
    if not good:
        names = {str: "text", int: "an integer", float: "a number", bool: "true or false", tuple: "a list of texts"}
        raise ConfigError(f"{field.name} is {value!r}, expected {names[kind]}")
    low = field.metadata["low"]
    if low is not None and value < low:
        raise ConfigError(f"{field.name} is {value}, expected at least {low:g}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; {nearest(value, known)}")
