"""The file beside the weights from which `AutoModelForCausalLM` loads the class of a model."""

import ast
from pathlib import Path

FILE = "modeling_thinkers.py"
AUTO_MAP = {
    "AutoConfig": "modeling_thinkers.ThinkersConfig",
    "AutoModelForCausalLM": "modeling_thinkers.ThinkersForCausalLM",
}
STANDALONE = ("decoder", "looped")
"""Models whose file needs torch and transformers alone."""
PARTS = ("configuration", "rows", "wrapper", "standalone")
"""The files of this folder that are joined to it, in the order of their use."""
OF_LIBRARY = '''"""The class of this model is in the library `thinkers`."""

try:
    from thinkers.hf import ThinkersConfig, ThinkersForCausalLM
except ImportError:
    raise ImportError(
        "found: no package thinkers, which has the class of this model\\n"
        "expected: the library and its extra hf\\n"
        'fix: pip install "thinkers[hf]"'
    ) from None

__all__ = ["ThinkersConfig", "ThinkersForCausalLM"]
'''


def modeling_file(name: str) -> str:
    """Return the source of the file of a model of this name."""
    return join() if name in STANDALONE else OF_LIBRARY


def join() -> str:
    """Return one source of PARTS: the docstring of the last, all imports, all definitions."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    docstring, bodies = "", []
    for part in PARTS:
        text = (Path(__file__).parent / f"{part}.py").read_text(encoding="utf-8")
        tree, end = ast.parse(text), 0
        docstring = ast.get_source_segment(text, tree.body[0]) or ""
        for node in tree.body:
            if isinstance(node, ast.Import):
                plain.add(ast.unparse(node))
            elif isinstance(node, ast.ImportFrom) and node.module:
                named.setdefault(node.module, set()).update(map(ast.unparse, node.names))
            else:
                continue
            end = node.end_lineno or 0
        bodies.append("\n".join(text.splitlines()[end:]).strip("\n"))
    plain |= {
        f"from {module} import {', '.join(sorted(names))}"
        for module, names in named.items()
        if not module.startswith("thinkers.")
    }
    outside = [x for x in plain if x.split()[1].partition(".")[0] in ("torch", "transformers")]
    groups = [sorted(plain.difference(outside)), sorted(outside, key=lambda x: (x[0] == "f", x))]
    imports = "\n\n".join("\n".join(group) for group in groups)
    return "\n\n\n".join([f"{docstring}\n\n{imports}", *bodies]) + "\n"
