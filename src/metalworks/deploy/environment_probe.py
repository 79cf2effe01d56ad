"""Find out, inside a project's environment, what the project imports and whether its flows load.

Runs with that environment's Python, which reads it from standard input, so it may use only the standard library and
that environment's Prefect: ``python -I - REQUEST ANSWER < environment_probe.py``. Both files are JSON.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from typing import Any

LOAD_SECONDS = 120
"""Time limit for importing a flow."""
TESTS = {"tests", "test", "conftest"}
SKIPPED = {"__pycache__", "node_modules", "site-packages"}
NEEDED, OPTIONAL, TYPING = "needed", "optional", "typing"


class Imports(ast.NodeVisitor):
    """Collects the imports of a file, at any depth: (module, level, names, line, kind)."""

    def __init__(self) -> None:
        """Start with none."""
        self.found: list[tuple[str, int, list[str], int, str]] = []
        self.kind = NEEDED

    def _within(self, kind: str, nodes: Iterable[ast.AST]) -> None:
        before, self.kind = self.kind, kind if self.kind == NEEDED else self.kind
        for node in nodes:
            self.visit(node)
        self.kind = before

    def visit_Import(self, node: ast.Import) -> None:
        """Note `import a.b`."""
        self.found += [(alias.name, 0, [], node.lineno, self.kind) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note `from a import b`."""
        names = [alias.name for alias in node.names]
        self.found.append((node.module or "", node.level, names, node.lineno, self.kind))

    def visit_Call(self, node: ast.Call) -> None:
        """Note `import_module("a.b")`."""
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0] if node.args else None
        if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
            name = first.value
            if isinstance(name, str) and all(part.isidentifier() for part in name.split(".")):
                self.found.append((name, 0, [], node.lineno, self.kind))
        self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        """Mark imports in `try: … except ImportError` as optional."""
        caught = {name for handler in node.handlers for name in _names(handler.type)}
        guarded = caught & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException", ""}
        self._within(OPTIONAL if guarded else self.kind, [*node.body, *node.handlers])
        self._within(self.kind, [*node.orelse, *node.finalbody])

    def visit_With(self, node: ast.With) -> None:
        """Mark imports in `contextlib.suppress(ImportError)` as optional."""
        named = {name for item in node.items for inner in ast.walk(item.context_expr) for name in _names(inner)}
        guarded = "suppress" in named and named & {"ImportError", "ModuleNotFoundError", "Exception"}
        self._within(OPTIONAL if guarded else self.kind, ast.iter_child_nodes(node))

    def visit_If(self, node: ast.If) -> None:
        """Mark imports for type checkers, and as optional those for other Python versions or systems."""
        named = {name for inner in ast.walk(node.test) for name in _names(inner)}
        if "TYPE_CHECKING" in named:
            self._within(TYPING, node.body)
            self._within(self.kind, node.orelse)
        elif named & {"version_info", "platform"} or ("os" in named and "name" in named):
            self._within(OPTIONAL, [*node.body, *node.orelse])
        else:
            self.generic_visit(node)


def _names(node: ast.AST | None) -> set[str]:
    """Return the names in an expression: A and C for `except (A, b.C)`, the empty name for a bare `except`."""
    if node is None:
        return {""}
    if isinstance(node, ast.Tuple):
        return {name for inner in node.elts for name in _names(inner)}
    return {name for name in (getattr(node, "id", None), getattr(node, "attr", None)) if name}


class Project:
    """The files of a project and its module search path."""

    def __init__(self, code: Path, roots: Sequence[str], scripts: Sequence[str], modules: Sequence[str]) -> None:
        """Take the project's folder, its import path, and the scripts and modules that runs start with.

        Python adds the folder of a script to the import path, but not that of a module.
        """
        self.code = code.resolve()
        begun = [path for path in (self.code / script for script in scripts) if path.is_file()]
        self.starts = begun + [path for path in (self.code / module for module in modules) if path.is_file()]
        self.roots = {str(Path(root).resolve()) for root in roots}
        folders = [*map(Path, roots), *(script.parent for script in begun)]
        self.path = [*dict.fromkeys(str(folder.resolve()) for folder in folders), *sys.path]
        self.specs: dict[str, ModuleSpec | None] = {}

    def spec(self, name: str) -> ModuleSpec | None:
        """Return where a module is, without importing anything, or None if it does not exist."""
        if name not in self.specs:
            above = name.rpartition(".")[0]
            parent = self.spec(above) if above else None
            path = self.path if not above else list((parent and parent.submodule_search_locations) or [])
            self.specs[name] = _find(name, path)
        return self.specs[name]

    def own(self, spec: ModuleSpec) -> bool:
        """Tell whether a module belongs to the project."""
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        return any(Path(place).resolve().is_relative_to(self.code) for place in places)

    def files(self) -> Iterator[Path]:
        """Return all Python files except tests."""
        for folder, below, names in os.walk(self.code):
            below[:] = sorted(name for name in below if name not in TESTS | SKIPPED and not name.startswith("."))
            for name in sorted(names):
                stem = name[:-3] if name.endswith(".py") else ""
                if stem and stem not in TESTS and not stem.startswith("test_") and not stem.endswith("_test"):
                    yield Path(folder, name)

    def missing(self, name: str) -> str | None:
        """Return the shortest missing part of a module's name, or None if the module exists."""
        parts = name.split(".")
        if parts[0] in sys.stdlib_module_names or parts[0] in sys.builtin_module_names:
            return None
        for count in range(1, len(parts) + 1):
            part = ".".join(parts[:count])
            if self.spec(part) is not None:
                continue
            above = self.spec(part.rpartition(".")[0]) if count > 1 else None
            # Installed packages may create modules at import; namespace packages and the project's own do not.
            silent = above is not None and (above.loader is None or above.origin is None or self.own(above))
            return part if count == 1 or silent else None
        return None

    def modules(self, name: str, names: Iterable[str]) -> Iterator[Path]:
        """Return the project's files that an import executes."""
        parts = name.split(".")
        for full in [*(".".join(parts[: count + 1]) for count in range(len(parts))), *(f"{name}.{n}" for n in names)]:
            spec = self.spec(full)
            if spec is not None and spec.origin and spec.origin.endswith(".py") and self.own(spec):
                yield Path(spec.origin).resolve()

    def relative(self, file: Path, level: int, module: str, names: Iterable[str]) -> tuple[list[Path], str | None]:
        """Return the files that `from .module import names` executes, or the module that is missing."""
        folder = file.parents[level - 1]
        place = folder.joinpath(*module.split(".")) if module else folder
        found = [path for path in _module_files(place) if path.is_file()]
        if module and not found and not place.is_dir():
            return [], "." * level + module
        if place.is_dir():
            found += [path for name in names for path in _module_files(place / name) if path.is_file()]
        return [path for path in found if path.suffix == ".py"], None


LOADERS: list[tuple[Any, list[str]]] = [
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
]


def _find(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """Return where a module is. For namespace packages, Python's own search depends on what is imported already."""
    parts: list[str] = []
    for folder in path:
        spec = FileFinder(folder, *LOADERS).find_spec(name)
        if spec is not None and spec.loader is not None:
            return spec
        parts += (spec and spec.submodule_search_locations) or []
    if not parts:
        return None
    found = ModuleSpec(name, None, is_package=True)
    found.submodule_search_locations = parts
    return found


def _module_files(place: Path) -> list[Path]:
    suffixes = [".py", *EXTENSION_SUFFIXES]
    return [place / "__init__.py", *(place.with_name(place.name + suffix) for suffix in suffixes)]


def imports(project: Project) -> list[dict[str, Any]]:
    """Return each import in the project that is third-party or missing.

    `reached` tells whether flows can reach it; if a flow imports a package, all modules of that package count.
    """
    everything = list(project.files())
    reached: dict[Path, None] = {}
    queue = list(project.starts)
    rows: dict[Path, list[dict[str, Any]]] = {}
    while queue:
        file = queue.pop()
        if file in reached:
            continue
        reached[file] = None
        rows[file], more = _imports_of(project, file)
        queue += more
        top = _package(file, project)
        queue += [other for other in everything if top is not None and other.is_relative_to(top)]
    for file in everything:
        if file not in rows:
            rows[file] = _imports_of(project, file)[0]
    return [{**row, "reached": file in reached} for file in sorted(rows) for row in rows[file]]


def _package(file: Path, project: Project) -> Path | None:
    """Return the folder of the top-level package that a file belongs to, or None for a script."""
    top = None
    for folder in file.parents:
        if str(folder) in project.roots or not (folder / "__init__.py").is_file():
            break
        top = folder
    return top


def _imports_of(project: Project, file: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return a file's third-party and missing imports, and the project's files that it imports."""
    place = str(file.relative_to(project.code))
    try:
        tree = ast.parse(file.read_bytes(), filename=place)
    except SyntaxError as error:
        return [{"file": place, "line": error.lineno or 1, "syntax": error.msg}], []
    visitor = Imports()
    visitor.visit(tree)
    rows: list[dict[str, Any]] = []
    files: list[Path] = []
    for module, level, names, line, kind in visitor.found:
        row = {"file": place, "line": line, "kind": kind}
        if level:
            found, lacking = project.relative(file, level, module, names)
            files += found
            if lacking:
                rows.append({**row, "module": lacking, "missing": lacking, "own": True})
            continue
        spec = project.spec(module.split(".")[0])
        own = spec is not None and project.own(spec)
        files += project.modules(module, names)
        gone = project.missing(module)
        if gone is None and spec is not None and spec.submodule_search_locations is not None and spec.origin is None:
            # `from google.cloud import storage`: names in a namespace package can only be modules.
            gone = next(
                (part for part in map(project.missing, (f"{module}.{n}" for n in names if n != "*")) if part), None
            )
        if gone or not (own or module.split(".")[0] in sys.stdlib_module_names):
            rows.append({**row, "module": module, "missing": gone, "own": own})
    return rows, files


def load(entrypoint: str, code: str, roots: Sequence[str], variables: dict[str, str]) -> dict[str, Any]:
    """Load a flow as a worker does; return its name and parameters, or the error. Run it in a separate process."""
    import inspect

    from prefect.flows import load_flow_from_entrypoint

    os.environ.update(variables)
    os.environ["PYTHONPATH"] = os.pathsep.join(roots)
    os.chdir(code)
    sys.path[:0] = ["", *roots]
    try:
        flow: Any = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except BaseException as error:
        return _problem(getattr(error, "user_exc", error), code)
    parameters = inspect.signature(flow.fn).parameters.values()
    return {
        "name": flow.name,
        "parameters": [item.name for item in parameters if item.kind is not item.VAR_KEYWORD],
        "required": [
            item.name
            for item in parameters
            if item.default is item.empty and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
        ],
        "any": any(item.kind is item.VAR_KEYWORD for item in parameters),
    }


def _problem(error: BaseException, code: str) -> dict[str, Any]:
    """Return an error and the line of the project's code that caused it."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno))
    above = os.path.realpath(code)
    inside = [(os.path.relpath(os.path.realpath(file), above), line) for file, line in frames]
    inside = [(file, line) for file, line in inside if not file.startswith((os.pardir, "<"))]
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return {
        "error": f"{type(error).__name__}: {error}",
        "where": "{}:{}".format(*inside[-1]) if inside else None,
        "missing": missing,
    }


def load_apart(entrypoint: str, code: str, roots: Sequence[str], variables: dict[str, str]) -> dict[str, Any]:
    """Call `load` in a separate process, so that flows do not affect each other."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(2, 1)
        signal.alarm(LOAD_SECONDS)
        answer = load(entrypoint, code, roots, variables)
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    if output:
        return dict(json.loads(output))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return {"error": f"importing it takes longer than {LOAD_SECONDS} s", "where": None, "missing": None}
    return {"error": f"importing it ended Python (status {status})", "where": None, "missing": None}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request."""
    project = Project(Path(request["code"]), request["roots"], request["scripts"], request["modules"])
    flows = {}
    if request["flows"]:
        import prefect.flows  # noqa: F401  # once, before the processes below are forked
    for entrypoint, variables in request["flows"].items():
        flows[entrypoint] = load_apart(entrypoint, request["code"], request["roots"], variables)
    return {
        "imports": imports(project),
        "distributions": {name: list(found) for name, found in metadata.packages_distributions().items()},
        "flows": flows,
    }


if __name__ == "__main__":
    done = answer(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(done))
