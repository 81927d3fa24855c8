"""Nothing unpickles or runs what lies in a file, but the one restricted unpickler, for `import` and `plan`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import umamba_cli

ROOT = Path(umamba_cli.__file__).parent
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "copyreg", "runpy"}
LOADERS = {
    *("torch.load", "torch.serialization.load", "torch.jit.load", "torch.export.load", "torch.hub.load"),
    *("torch.package.PackageImporter", "joblib.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load"),
    *("blosc2.unpack", "blosc2.unpack_array", "blosc2.unpack_array2", "blosc2.unpack_tensor"),
    *("blosc2.load_array", "blosc2.load_tensor", "numpy.lib.format.read_array", "eval", "exec", "__import__"),
}
ALLOWED = {
    ("pipeline/interop/unpickle.py", "pickle"),  # the restricted unpickler
    ("pipeline/interop/torch_file.py", "pickle"),  # a subclass of it that knows tensors
    ("pipeline/cluster.py", "pickle"),  # no file: what the processes of one job tell each other
}
MAY_UNPICKLE = {"umamba_cli.commands.import_", "umamba_cli.commands.plan"}
"""`umamba import`, and `umamba plan --from-nnunet`."""


def _names(tree: ast.AST) -> dict[str, str]:
    """What each imported name of a module stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                found[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, wherever in the file; of `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value, names)
        return before and f"{before}.{node.attr}"
    return None


def dangers(source: str) -> list[str]:
    """What a module names that could unpickle or run a file."""
    tree = ast.parse(source)
    names = _names(tree)
    found = {module for module in _imported(tree) if module.split(".")[0] in UNPICKLERS}
    found = {module.split(".")[0] for module in found}
    safe_loads = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is False for k in node.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = _dotted(node, names)
            if name in LOADERS or (name == "numpy.load" and id(node) not in safe_loads):
                found.add(str(name))
    return sorted(found)


def test_nothing_else_unpickles() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in ROOT.rglob("*.py")
        for name in dangers(path.read_text(encoding="utf-8"))
    }
    assert not found - ALLOWED
    assert found  # it looks where there is something


def test_only_two_commands_reach_the_unpickler() -> None:
    imports = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(["umamba_cli", *path.relative_to(ROOT).with_suffix("").parts])
        imports[name.removesuffix(".__init__")] = set(_imported(ast.parse(path.read_text(encoding="utf-8"))))
    reach = {"umamba_cli.pipeline.interop.unpickle"}
    while more := {name for name, of in imports.items() if of & reach} - reach - {"umamba_cli.cli"}:
        reach |= more
    assert {name for name in reach if name.startswith("umamba_cli.commands.")} == MAY_UNPICKLE
    assert not {
        name for name in reach if name.startswith(("umamba_cli.pipeline.runs", "umamba_cli.pipeline.inference"))
    }


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\nx = torch.load('a')", "torch.load"),
        ("from torch import load as read\nread('a')", "torch.load"),
        ("import numpy as np\nnp.load('a')", "numpy.load"),
        ("import numpy as np\nnp.load('a', allow_pickle=True)", "numpy.load"),
        ("import numpy\nread = numpy.load", "numpy.load"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("import joblib\njoblib.load('a')", "joblib.load"),
        ("exec('1')", "exec"),
    ],
)
def test_what_would_be_found(source: str, name: str) -> None:
    assert dangers(source) == [name]


def test_what_is_no_danger() -> None:
    assert not dangers(
        "import numpy as np\nfrom safetensors.torch import load\nload(b'')\nnp.load('a', allow_pickle=False)"
    )
