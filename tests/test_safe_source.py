"""The code itself: nothing in it unpickles, evaluates, or runs what a model or a file brings with it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("cai", "flows", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "dbm"}
CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
    ),
    *("yaml.full_load", "torch.load", "torch.save", "pd.read_pickle", "numpy.load", "np.load"),
}
# Said of models only where the user's own setting decides, and never true in the code.
SWITCHES = {"trust_remote_code", "allow_pickle", "weights_only", "shell"}


def faults(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                yield f"{ast.unparse(node.func)}(...)"
            for given in node.keywords:
                wanted = given.arg == "weights_only"
                if given.arg in SWITCHES and isinstance(given.value, ast.Constant) and given.value.value is not wanted:
                    yield f"{given.arg}={ast.unparse(given.value)}"
        elif isinstance(node, ast.Attribute) and node.attr in ("Loader", "UnsafeLoader", "FullLoader", "CLoader"):
            if ast.unparse(node.value) == "yaml":
                yield f"yaml.{node.attr}"
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in SWITCHES:
            default = node.value.keywords[0].value if isinstance(node.value, ast.Call) else node.value
            if not (isinstance(default, ast.Constant) and default.value is False):
                yield f"{node.target.id} is on unless told otherwise"


# A stage's work goes to actors of its own, over Ray, which unpickles by itself: nothing that comes from anywhere else.
ALLOWED = {"cai/hands.py": ["import pickle"]}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_nothing_is_unpickled_evaluated_or_trusted(path: Path):
    assert list(faults(path.read_text())) == ALLOWED.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from marshal import loads", "import joblib.memory", "eval('1')", "x = torch.load(f)",
        "yaml.load(t, Loader=yaml.Loader)", "load(x, trust_remote_code=True)", "run(c, shell=True)",
        "trust_remote_code: bool = Field(default=True)", "load(x, weights_only=False)",
    ],
)  # fmt: skip
def test_what_would_be_a_fault_is_found(text: str):
    assert list(faults(text))
