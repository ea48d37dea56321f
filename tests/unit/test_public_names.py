"""The public names: all there, all lazy, one version, and an import that costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import pixtral

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "PIL", "mistral_common", "tokenizers", "huggingface_hub", "jinja2", "typer", "rich")


@pytest.mark.parametrize("name", pixtral.__all__)
def test_every_name_resolves(name):
    value = getattr(pixtral, name)
    assert value is getattr(pixtral, name)
    if isinstance(value, type) and name != "MistralCommonBackend":
        assert value.__name__ == name
        assert value.__doc__, f"{name} has no docstring"


def test_the_lists_of_names_agree():
    home = set(pixtral._HOME) | {"__version__"}
    tree = ast.parse(Path(pixtral.__file__).read_text())
    typed = {
        alias.asname
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert set(pixtral.__all__) == home
    assert typed == set(pixtral._HOME) | set(pixtral._MODULES)
    assert pixtral.__all__ == sorted(pixtral.__all__)
    assert set(pixtral.__all__) <= set(dir(pixtral))


def test_from_import_and_star_import():
    namespace: dict[str, object] = {}
    exec("from pixtral import *", namespace)
    assert set(pixtral.__all__) <= set(namespace)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'AutoModel'"):
        _ = pixtral.AutoModel
    with pytest.raises(ImportError):
        exec("from pixtral import AutoModel", {})


def test_modules_as_attributes():
    code = "import pixtral; print(pixtral.assets.demo_image_path().name, pixtral.errors.ImageError.__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "demo.png ImageError"


def test_the_alias_is_the_same_class():
    assert pixtral.MistralCommonBackend is pixtral.MistralCommonTokenizer


def test_one_version():
    project = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    changelog = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project is not None
    assert changelog is not None
    assert pixtral.__version__ == project[1] == changelog[1]
    try:
        installed = metadata.version("pixtral")
    except metadata.PackageNotFoundError:
        return
    assert installed == pixtral.__version__


def test_importing_loads_nothing_heavy():
    code = f"import sys, pixtral; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_errors_and_configurations_need_no_torch():
    use = "pixtral.PixtralError, pixtral.LlavaConfig, pixtral.ImageLimits"
    code = f"import sys, pixtral; {use}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_importing_takes_no_packages_and_one_module():
    """What takes time when importing is what is imported; of the standard library only what is quick."""
    code = "import sys\nbefore = set(sys.modules)\nimport pixtral\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = done.stdout.split()
    assert [name for name in found if name.split(".")[0] not in sys.stdlib_module_names] == ["pixtral"]
    assert not {name.split(".")[0] for name in found} & {"asyncio", "concurrent", "email", "http", "ssl", "unittest"}
