"""What imports what: read from the sources, without running them."""

import ast
import configparser
import graphlib
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The first that a module's name begins with says what else of ours the module may import.
ALLOWED = {
    "serving.model_server": ("serving.model_server",),
    "serving.client": ("serving.client",),
    "serving": ("serving", "keras_models"),
    "keras_models": ("keras_models",),
    "pipelines": ("pipelines", "serving", "keras_models"),
}
OURS = ("keras_models", "pipelines", "serving")
LIGHT = (
    *("cli", "cluster", "errors", "folder", "job", "jobfile"),
    *("jobs", "meeting", "running", "supervisor"),
)
WITHOUT_TENSORFLOW = ["keras_models.configs", *(f"pipelines.{name}" for name in LIGHT)]


def _name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for top in OURS for path in sorted((ROOT / top).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def _within(name, package):
    return name == package or name.startswith(f"{package}.")


def _imports(module, nodes):
    """Yields the modules of ours that import statements name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in TREES else base for name in names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in OURS)


def test_the_reader_of_imports_sees_those_that_are_there():
    assert len(TREES) > 30
    found = set(_imports("pipelines.running", ast.walk(TREES["pipelines.running"])))
    assert {"pipelines.jobfile", "pipelines.run", "serving.model_server.quiet"} <= found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    modules = [name for name in TREES if next(p for p in ALLOWED if _within(name, p)) == package]
    assert modules
    for module in modules:
        for imported in _imports(module, ast.walk(TREES[module])):
            allowed = any(_within(imported, other) for other in ALLOWED[package])
            assert allowed, f"{module} must not import {imported}"


def test_no_modules_import_each_other():
    graph = {name: set(_imports(name, tree.body)) - {name} for name, tree in TREES.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", TREES)
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(TREES[name])


def test_jobs_and_their_configurations_are_built_without_tensorflow():
    modules = [name for name in TREES if any(_within(name, w) for w in WITHOUT_TENSORFLOW)]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
from pipelines import jobfile
for name in jobfile.names():
    file = jobfile.load(name)
    file.job(), file.job(quick=True), file.about()
heavy = sorted({{"keras", "tensorflow", "tensorflow_datasets"}} & sys.modules.keys())
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _packages(tree):
    """Yields the packages, of whomever, that import statements name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_every_package_that_is_imported_is_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    required = re.findall(r"^[\w-]+", "\n".join(wanted), re.MULTILINE)
    declared = {name.replace("_", "-") for name in required}
    # A namespace shared by many is not told of before Python 3.12.
    providers = {"google": ["protobuf"], **metadata.packages_distributions()}
    imported = {name for tree in TREES.values() for name in _packages(tree)}
    for name in imported - sys.stdlib_module_names - set(OURS):
        found = {each.lower().replace("_", "-") for each in providers.get(name, [name])}
        assert found & declared, f"{name} is imported, of {found}, none of which setup.cfg declares"
