"""The house rules, read from the source: which room may import which, who may decode, draw or name a model family."""

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ROOMS = ("data", "models", "training", "analysis", "views")
MAX_LINES = 350
DECODERS = {"decord", "av", "torchcodec", "cv2", "imageio", "torchvision"}
# Reading frames, writing files, and taking stock of a whole file.
MAY_DECODE = {
    "workbench.data.decoders", "workbench.data.clips", "workbench.data.checks.survey", "workbench.data.streaming"
}  # fmt: skip
DRAWING = {"ipywidgets", "plotly", "matplotlib", "anywidget", "seaborn"}
PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FAMILIES = re.compile(
    r"videomae|timesformer|vivit|vjepa|dinov|^vit|bert|roberta|swin|clip(model|vision|config)|hiera", re.IGNORECASE
)
# What a call must not say, and `torch.load` must say: each would run code that a file brings along.
UNSAFE = {"trust_remote_code": True, "weights_only": False, "allow_pickle": True}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|tmp|home)/[\w.]")


@dataclass(frozen=True)
class Import:
    """One imported module, by full name, and how."""

    module: str
    names: tuple[str, ...]
    line: int
    at_import_time: bool


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
    """The room that ``workbench.<room>...`` names, or None."""
    parts = module.split(".")
    return parts[1] if parts[0] == "workbench" and len(parts) > 1 and parts[1] in ROOMS else None


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """All imports of a module, also those inside functions, relative ones and ``import_module("...")``."""

    def visit(node: ast.AST, now: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno, now)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + (1 if is_package else 0)
                base = ".".join([*parts[:keep], *([base] if base else [])])
            yield Import(base, tuple(alias.name for alias in node.names), node.lineno, now)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            named = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
            yield from (Import(str(name), (), node.lineno, now) for name in named)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            now = False
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            now = False
        for child in ast.iter_child_nodes(node):
            yield from visit(child, now)

    yield from visit(tree, True)


def targets(found: Import, modules: set[str]) -> set[str]:
    """The package's own modules that an import reaches; ``from workbench.data import clips`` reaches ``...clips``."""
    reached = {f"{found.module}.{name}" for name in found.names} & modules
    return reached or ({found.module} & modules)


def safety_violations(tree: ast.Module) -> Iterator[str]:
    """Places where a file could bring code along: pickles, remote code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            for option, value in UNSAFE.items():
                if given.get(option) is value:
                    yield f"line {node.lineno}: {option}={value}"
            if called.endswith("torch.load") and given.get("weights_only") is not True:
                yield f"line {node.lineno}: torch.load without weights_only=True"
            if called.endswith(("read_pickle", "to_pickle")):
                yield f"line {node.lineno}: {called}"
        for name in imported_roots(node):
            if name in PICKLERS:
                yield f"line {getattr(node, 'lineno', 0)}: imports {name}"


def imported_roots(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []


def family_violations(tree: ast.Module, found: list[Import]) -> Iterator[str]:
    """Places that name a transformer family: ``from transformers import VideoMAEModel``, ``transformers.ViTModel``."""
    for one in found:
        if one.module.split(".")[0] == "transformers":
            inside = [one.module.split(".")[2]] if one.module.startswith("transformers.models.") else []
            for name in (*inside, *one.names):
                if FAMILIES.search(name):
                    yield f"line {one.line}: names the transformer family {name}; only models/families/ may"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "transformers" and FAMILIES.search(node.attr):
            yield f"line {node.lineno}: names the transformer family {node.attr}; only models/families/ may"


def module_violations(module: str, path: Path, tree: ast.Module, found: list[Import]) -> Iterator[str]:
    """What one module of the package does that its place in the house forbids."""
    here = room(module)
    for one in found:
        there = room(one.module)
        if here and there and ROOMS.index(there) > ROOMS.index(here):
            yield f"line {one.line}: {here} imports {one.module}, which is up the stairs"
        if here and one.module == "workbench":
            for name in one.names or ("workbench",):
                if name in ROOMS and ROOMS.index(name) > ROOMS.index(here):
                    yield f"line {one.line}: {here} imports {name}, which is up the stairs"
                elif name not in ROOMS and name != "__version__":
                    yield f"line {one.line}: imports {name} from workbench; name the module that defines it"
        if here and one.module.startswith("workbench.cli"):
            yield f"line {one.line}: {here} imports the command line"
        package = one.module.split(".")[0]
        if package in DECODERS and module not in MAY_DECODE:
            yield f"line {one.line}: imports the decoder {package}; only {', '.join(sorted(MAY_DECODE))} may"
        if package in DRAWING and here != "views":
            yield f"line {one.line}: imports {package}; only views/ may"
    if not module.startswith("workbench.models.families"):
        yield from family_violations(tree, found)
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_LINES:
        yield f"has {lines} lines; split it (at most {MAX_LINES})"


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """One line per cycle of modules that import each other while being imported."""
    found: list[str] = []
    state: dict[str, int] = {}

    def visit(node: str, path: list[str]) -> None:
        state[node] = 1
        for child in sorted(graph.get(node, ())):
            if state.get(child) == 1:
                found.append("cycle: " + " -> ".join([*path[path.index(child) :], child]))
            elif child not in state:
                visit(child, [*path, child])
        state[node] = 2

    for node in sorted(graph):
        if node not in state:
            visit(node, [node])
    return found


def violations(root: Path) -> list[str]:
    """Everything in ``root/workbench`` that breaks a house rule, one line each."""
    files = {module_name(path, root): path for path in sorted((root / "workbench").rglob("*.py"))}
    problems: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = list(imports(tree, module, path.name == "__init__.py"))
        here = path.relative_to(root).as_posix()
        problems += [f"{here}: {text}" for text in module_violations(module, path, tree, found)]
        problems += [f"{here}: {text}" for text in safety_violations(tree)]
        at_once = [one for one in found if one.at_import_time]
        graph[module] = set().union(*(targets(one, set(files)) for one in at_once)) - {module} if at_once else set()
        if len(path.relative_to(root).parts) > 2 and not (path.parent / "__init__.py").exists():
            problems.append(f"{here}: its folder has no __init__.py, so it would not be installed")
    return problems + cycles(graph)


def repository_files() -> list[Path]:
    """What git tracks or would track; without git, all but the usual leftovers."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(listing, cwd=REPO, capture_output=True, text=True, check=True, timeout=60)
        paths = [REPO / name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        skip = {".venv", ".git", "runs", "reports", "build", "dist", "__pycache__"}
        paths = [path for path in REPO.rglob("*") if not skip & set(path.relative_to(REPO).parts)]
    return [path for path in paths if path.is_file() and not path.name.endswith(".pyc")]


def text_of(path: Path) -> str:
    """The file's text; empty for a binary one."""
    raw = path.read_bytes()
    return "" if b"\0" in raw[:8192] else raw.decode("utf-8", errors="replace")


def test_house_rules_hold():
    assert violations(REPO) == []


def test_no_pickle_or_remote_code_outside_the_package_either():
    scripts = [p for p in repository_files() if p.suffix == ".py" and p.parts[len(REPO.parts)] != "workbench"]
    problems = [
        f"{path.relative_to(REPO)}: {text}"
        for path in scripts
        for text in safety_violations(ast.parse(text_of(path)))
    ]  # fmt: skip
    assert len(scripts) > 3
    assert problems == []


def test_rooms_are_the_packages():
    folders = {path.parent.name for path in (REPO / "workbench").glob("*/__init__.py")}
    assert folders == {*ROOMS, "cli"}


def test_datasets_folder_is_no_package():
    """It would hide Hugging Face's ``datasets`` for anyone who starts Python in the repository."""
    assert list((REPO / "datasets").rglob("*.py")) == []


def test_files_hold_no_paths_of_one_machine():
    problems = [
        f"{path.relative_to(REPO)}:{number}: {line.strip()[:100]}"
        for path in repository_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert problems == []


def test_files_are_small():
    checkpoint = REPO / "workbench" / "models" / "checkpoints"
    large = {
        path.relative_to(REPO).as_posix(): path.stat().st_size
        for path in repository_files()
        if path.stat().st_size > (12_000_000 if checkpoint in path.parents else 500_000)
    }
    assert large == {}


PLANTED = {
    "upward": ("data/x.py", "from workbench.training.loop import fine_tune", "up the stairs"),
    "upward, inside a function": ("models/x.py", "def f():\n    import workbench.views.plots", "up the stairs"),
    "upward, relative": ("models/x.py", "from ..analysis import compare", "up the stairs"),
    "upward, by name": (
        "data/x.py",
        "import importlib\nimportlib.import_module('workbench.models.tml')",
        "up the stairs",
    ),
    "upward, room from the package": ("data/x.py", "from workbench import views", "up the stairs"),
    "own lazy verbs": ("analysis/x.py", "import workbench as wb", "name the module"),
    "cli": ("views/x.py", "from workbench.cli import main", "the command line"),
    "decoder": ("data/x.py", "def f():\n    import decord", "the decoder decord"),
    "decoder, submodule": ("views/x.py", "from av.video import frame", "the decoder av"),
    "drawing": ("analysis/x.py", "import matplotlib.pyplot as plt", "only views/ may"),
    "drawing in cli": ("cli.py", "import plotly", "only views/ may"),
    "family": ("training/x.py", "from transformers import VideoMAEModel", "transformer family VideoMAEModel"),
    "family, module": ("models/x.py", "from transformers.models.vivit import x", "transformer family vivit"),
    "family, attribute": ("models/x.py", "import transformers\ntransformers.RobertaModel", "family RobertaModel"),
    "pickle": ("data/x.py", "import pickle", "imports pickle"),
    "pandas pickle": ("data/x.py", "import pandas as pd\npd.read_pickle('x')", "pd.read_pickle"),
    "torch.load": ("training/x.py", "import torch\ntorch.load('x')", "without weights_only=True"),
    "weights_only": ("training/x.py", "f(weights_only=False)", "weights_only=False"),
    "remote code": ("models/x.py", "f(trust_remote_code=True)", "trust_remote_code=True"),
    "long": ("data/x.py", "x = 1\n" * (MAX_LINES + 1), "split it"),
    "no package": ("data/deep/x.py", "", "no __init__.py"),
    "cycle": ("data/x.py", "from workbench.data import y", "cycle: workbench.data.x -> workbench.data.y"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_violations_flags(case: str, tmp_path: Path):
    """The checker sees each fault that it is there for, and only that one."""
    name, code, message = PLANTED[case]
    for folder in (".", *ROOMS):
        (tmp_path / "workbench" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "workbench" / folder / "__init__.py").touch()
    (tmp_path / "workbench" / "data" / "y.py").write_text("from . import x\n")
    path = tmp_path / "workbench" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    problems = violations(tmp_path)
    assert len(problems) == 1
    assert message in problems[0]


def test_violations_passes_what_is_allowed(tmp_path: Path):
    allowed = {
        "data/clips.py": "import numpy\n\ndef read():\n    import decord, av",
        "data/tables.py": "def doctor():\n    from workbench.data.doctor import examine",  # late, so no cycle
        "data/doctor.py": "from workbench.data.tables import ClipTable\nfrom workbench import __version__",
        "models/families/videomae.py": "from transformers import VideoMAEModel",
        "training/loop.py": "import torch\nfrom transformers import AutoConfig\ntorch.load('x', weights_only=True)",
        "views/plots.py": "import plotly\nfrom workbench.analysis import compare",
    }
    for folder in (".", *ROOMS):
        (tmp_path / "workbench" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "workbench" / folder / "__init__.py").touch()
    (tmp_path / "workbench" / "models" / "families").mkdir()
    (tmp_path / "workbench" / "models" / "families" / "__init__.py").touch()
    for name, code in allowed.items():
        (tmp_path / "workbench" / name).write_text(code)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "is_one"), [("see /ro" + "ot/x", True), ("s/wo" + "rk/x", False), ("../shared/clips", False)]
)
def test_machine_path_pattern(text: str, is_one: bool):
    assert bool(MACHINE_PATH.search(text)) is is_one
