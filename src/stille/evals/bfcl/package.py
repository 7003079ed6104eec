"""The Berkeley Function-Calling Leaderboard as its package `bfcl-eval` has it: questions, answers and checkers.

The package is used without what it depends on, which is for calling other people's models:

    pip install --no-deps bfcl-eval==2026.3.23

Its own code loads the data and checks answers. Never train on any of it.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from stille.errors import ConfigError

VERSION = "2026.3.23"

AST = [
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
]
RELEVANCE = ["irrelevance", "live_irrelevance", "live_relevance"]
MULTI_TURN = ["multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context"]
CATEGORIES = [*AST, *RELEVANCE, *MULTI_TURN]

SKIPPED = {
    "web_search_base": "searches the web",
    "web_search_no_snippet": "searches the web",
    "memory_kv": "needs the package's search index (rank-bm25), and answers are judged as prose",
    "memory_vector": "needs an embedding model that is downloaded",
    "memory_rec_sum": "needs dozens of conversations to be led before a question",
    "format_sensitivity": "is about prompts in other formats than ours, and counts for no score",
}
"""Parts of the leaderboard that do not run here, and why."""


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class Package:
    """The package, imported.

    Args:
        folder: that holds `bfcl_eval` (an unpacked wheel); None: the installed package.

    Raises:
        ConfigError: it is not there.
    """

    def __init__(self, folder: Path | None = None):
        _import(folder)
        self.utils = importlib.import_module("bfcl_eval.utils")
        self.ast = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
        self.multi_turn = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
        self.execution = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils")
        self.prompts = importlib.import_module("bfcl_eval.constants.default_prompts")
        self.languages = importlib.import_module("bfcl_eval.constants.enums").Language
        self.types: dict[str, str] = importlib.import_module("bfcl_eval.constants.type_mappings").GORILLA_TO_OPENAPI

    def questions(self, category: str) -> list[dict[str, Any]]:
        """Of a category. `told` are the functions as models get them: with hints on the language, and every parameter
        of Java and JavaScript a text; `function` as the checkers need them."""
        plain = self.utils.load_dataset_entry(category, include_language_specific_hint=False)
        hinted = self.utils.load_dataset_entry(category)
        return [{**entry, "told": other["function"]} for entry, other in zip(plain, hinted, strict=True)]

    def truth(self, category: str) -> dict[str, list[Any]]:
        """Right answers by the question's id; none for those about relevance."""
        if category in RELEVANCE:
            return {}
        return {entry["id"]: entry["ground_truth"] for entry in self.utils.load_ground_truth_entry(category)}

    def schema(self, node: dict[str, Any]) -> dict[str, Any]:
        """JSON schema for a description of parameters, whose types are those of several languages."""
        made = {key: node[key] for key in ("description", "required") if key in node}
        made["type"] = self.types.get(node.get("type", "any"), "string")
        if fitting := [value for value in node.get("enum", ()) if type(value) in _KINDS[made["type"]]]:
            made["enum"] = fitting  # some list values of another type, so that there would be no valid one
        if isinstance(node.get("properties"), dict):
            made["properties"] = {name: self.schema(inner) for name, inner in node["properties"].items()}
        if made["type"] == "array" and isinstance(node.get("items"), dict):
            made["items"] = self.schema(node["items"])
        if "default" in node and "description" in made and "efault" not in made["description"]:
            made["description"] += f" Default: {node['default']}."
        return made

    def check_ast(self, question: dict[str, Any], category: str, calls: list[dict[str, Any]], truth: list[Any]) -> str:
        """What is wrong with calls, by the package's name for it; empty: nothing.

        Args:
            calls: {name: arguments} each.
        """
        language = {"simple_java": "JAVA", "simple_javascript": "JAVASCRIPT"}.get(category, "PYTHON")
        try:
            found = self.ast.ast_checker(
                question["function"], calls, truth, self.languages[language], category, "stille"
            )
        except Exception as error:  # the checker does not foresee every answer; none that it breaks at is right
            return f"checker:{type(error).__name__}"
        return "" if found["valid"] else found["error_type"]

    def check_turns(
        self, question: dict[str, Any], category: str, turns: list[list[list[str]]], truth: list[list[str]], name: str
    ) -> str:
        """As `check_ast`, for all steps of all turns of a conversation, which are executed anew.

        Args:
            turns: of each turn its steps, of each step its calls, as Python.
            name: not used before in this process: the package keeps states by it.
        """
        try:
            found = self.multi_turn.multi_turn_checker(turns, truth, question, category, name)
            if found["valid"]:
                found = self.multi_turn.multi_turn_irrelevance_checker(turns, truth)
        except Exception as error:
            return f"checker:{type(error).__name__}"
        return "" if found["valid"] else found["error_type"]

    def execute(self, question: dict[str, Any], calls: list[str], name: str) -> list[str]:
        """What calls (Python) on a conversation's simulated systems give, whose state is kept by name."""
        results, _ = self.execution.execute_multi_turn_func_call(
            calls,
            question["initial_config"],
            question["involved_classes"],
            name,
            question["id"],
            long_context="long_context" in question["id"],
        )
        return results

    def forget(self, name: str) -> None:
        """Drops the states that are kept by a name."""
        kept = vars(self.execution)
        for key in [key for key in kept if key.startswith(name)]:
            del kept[key]


def _import(folder: Path | None) -> None:
    if "bfcl_eval.utils" in sys.modules:
        return
    if folder is not None:
        if not (folder / "bfcl_eval" / "data").is_dir():
            raise ConfigError(f"{folder} has no folder bfcl_eval/data: give the folder of an unpacked bfcl-eval wheel")
        sys.path.insert(0, str(folder))
    elif importlib.util.find_spec("bfcl_eval") is None:
        raise ConfigError(
            f"bfcl-eval is not installed: pip install --no-deps bfcl-eval=={VERSION}, or give the folder of an "
            "unpacked wheel with --data"
        )
    # The checkers look up one fact about a model in a module that imports every provider's client.
    config = ModuleType("bfcl_eval.constants.model_config")
    names_stay = SimpleNamespace(underscore_to_dot=False)
    config.MODEL_CONFIG_MAPPING = {"stille": names_stay}  # type: ignore[attr-defined]
    sys.modules[config.__name__] = config
    # Importing it makes folders for results and locks.
    scratch = tempfile.mkdtemp(prefix="stille-bfcl-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    before = os.environ.get("BFCL_PROJECT_ROOT")
    os.environ["BFCL_PROJECT_ROOT"] = scratch
    try:
        importlib.import_module("bfcl_eval.utils")
    finally:
        if before is None:
            del os.environ["BFCL_PROJECT_ROOT"]
        else:
            os.environ["BFCL_PROJECT_ROOT"] = before
