"""Settings: the command line before the environment before the file; what cannot be used is refused."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from pixtral.errors import ConfigError
from pixtral.server.run import JsonLines, TextLines
from pixtral.server.settings import Settings, is_loopback, kind_of, load_settings
from pixtral.server.state import served_name


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('port = 1\nmax_num_seqs = 2\nmax_images = 3\ncors_origin = ["https://a"]\ngrace_period = 5\n')
    return str(path)


def test_who_comes_first(file):
    environment = {"PIXTRAL_PORT": "10", "PIXTRAL_MAX_NUM_SEQS": "20", "HOME": "/"}
    settings, remarks = load_settings({"port": 100, "max_images": None, "cors_origin": None}, environment, file)
    assert (settings.port, settings.max_num_seqs, settings.max_images) == (100, 20, 3)
    assert (settings.cors_origin, settings.grace_period, settings.queue_limit) == (("https://a",), 5, 128)
    assert remarks == []


def test_kinds_from_the_environment():
    environment = {
        "PIXTRAL_NO_AUTH": "yes",
        "PIXTRAL_MAX_BODY_MB": "1.5",
        "PIXTRAL_CORS_ORIGIN": "https://a, https://b",
        "PIXTRAL_ALLOW_REMOTE_IMAGES": "0",
        "PIXTRAL_ISA": "avx2",
        "PIXTRAL_CONFIG": "x",
    }
    settings, remarks = load_settings({}, environment)
    assert settings.no_auth is True and settings.allow_remote_images is False
    assert settings.max_body_bytes == 1_500_000
    assert settings.cors_origin == ("https://a", "https://b")
    assert remarks == []


def test_a_misspelt_variable_is_remarked():
    _, (remark,) = load_settings({}, {"PIXTRAL_MAX_IMAGE": "3"})
    assert "PIXTRAL_MAX_IMAGE" in remark and "max_images" in remark


@pytest.mark.parametrize(
    ("given", "environment", "text", "message"),
    [
        ({}, {"PIXTRAL_PORT": "many"}, "", "PIXTRAL_PORT is 'many', expected an integer"),
        ({}, {"PIXTRAL_NO_AUTH": "perhaps"}, "", "expected true or false"),
        ({}, {}, "prot = 3", "unknown setting 'prot'; did you mean 'port'"),
        ({}, {}, "port = 'x'", "port is 'x', expected an integer"),
        ({}, {}, "port = true", "port is True, expected an integer"),
        ({}, {}, "port =", "not valid TOML"),
        ({"port": 70_000}, {}, "", "0 to 65535"),
        ({"max_num_seqs": 0}, {}, "", "max_num_seqs is 0, expected at least 1"),
        ({"request_timeout": float("inf")}, {}, "", "request_timeout is inf"),
        ({"host": "0.0.0.0"}, {}, "", "PIXTRAL_API_KEY"),
        ({"host": "example.org"}, {}, "", "--no-auth"),
        ({"api_key": ""}, {}, "", "api_key is empty"),
        ({"api_key": "schlüssel"}, {}, "", "ASCII"),
        ({"log_level": "loud"}, {}, "", "log_level"),
    ],
)
def test_what_cannot_be_used(tmp_path, given, environment, text, message):
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(given, environment, str(path))


@pytest.mark.parametrize("how", [{"api_key": "k"}, {"no_auth": True}])
def test_others_may_be_let_in(how):
    assert Settings(host="0.0.0.0", **how).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_who_can_reach_an_address(host, expected):
    assert is_loopback(host) is expected


def test_every_setting_says_what_it_is_for():
    for field in dataclasses.fields(Settings):
        assert field.metadata["help"].endswith("."), field.name
        assert kind_of(field) is bool or field.metadata["metavar"], field.name


def test_names_of_models(tmp_path):
    (tmp_path / "my-model").mkdir()
    assert served_name(Settings()) == "pixtral-tiny"
    assert served_name(Settings(model="mistralai/Pixtral-12B-2409")) == "mistralai/Pixtral-12B-2409"
    assert served_name(Settings(model=str(tmp_path / "my-model"))) == "my-model"
    assert served_name(Settings(model="a/b", served_model_name="c")) == "c"


def test_the_key_is_not_shown():
    assert "hidden-word" not in repr(Settings(api_key="hidden-word"))


def test_log_lines_do_not_quote_errors():
    try:
        raise ValueError("what somebody wrote")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"msg": "request failed", "levelname": "ERROR", "exc_info": (1, error, 2), "n": 1}
        )
    for line in (TextLines().format(record), JsonLines().format(record)):
        assert "ValueError" in line and "test_log_lines" in line and "what somebody wrote" not in line
