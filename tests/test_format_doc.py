"""docs/format.md against schema.py. `python tests/test_format_doc.py` rewrites the field tables."""

import ast
import inspect
from pathlib import Path

from frugalbench import schema

PAGE = Path(__file__).parents[1] / "docs" / "format.md"
BEGIN, END = "<!-- fields: python tests/test_format_doc.py -->", "<!-- end of fields -->"
SECTIONS = {
    "manifest.json": ("Manifest", "Plan", "Comparison", "Arm", "Case", "Cost", "Skipped", "Decision", "Harness"),
    "records.jsonl": (
        *("Record", "Worker", "FirstStart", "Artefact", "Verification", "Warmup", "Sample", "Environment", "Reading"),
        *("Quantity", "Sweep", "Tier", "Status", "Role", "CaseOutcome"),
    ),
    "data/claims/*.toml": (
        *(
            "Claim",
            "Source",
            "PairedRatio",
            "PairedArms",
            "ExactRatio",
            "ExactGroup",
            "Coverage",
            "Modelled",
            "EqualLoss",
            "NonInferiority",
            "Reach",
            "NotTested",
        ),
    ),
    "verdicts --json": ("Verdict", "Outcome"),
}
NOT_STORED = {"Frozen", "FrugalbenchError", "NothingRunsHere"}


def classes() -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(schema))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def text_of(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.replace("``", "`").split()).replace(":class:", "").replace(":func:", "")
    return ""


def type_of(field: ast.AnnAssign) -> str:
    return ast.unparse(field.annotation).replace(" | None", ", may be null").replace("|", "or")


def default_of(field: ast.AnnAssign) -> str:
    return f"`{ast.unparse(field.value)}`" if field.value else "required"


def rows(node: ast.ClassDef) -> list[str]:
    following = [*node.body[1:], None]
    pairs = zip(node.body, following, strict=True)
    return [
        f"| `{field.target.id}` | {type_of(field)} | {default_of(field)} | {text_of(after)} |"
        for field, after in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]


def values(node: ast.ClassDef) -> str:
    return ", ".join(f"`{ast.literal_eval(item.value)}`" for item in node.body if isinstance(item, ast.Assign))


def tag(node: ast.ClassDef) -> str:
    tags = [ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "tag"]
    return f" Written with `kind = {tags[0]}`." if tags else ""


def table(node: ast.ClassDef) -> list[str]:
    head = [f"### {node.name}", "", text_of(node.body[0]) + tag(node), ""]
    if listed := values(node):
        return [*head, f"One of {listed}.", ""]
    return [*head, "| field | type | default | meaning |", "|---|---|---|---|", *rows(node), ""]


def fields() -> str:
    found, lines = classes(), []
    for file, names in SECTIONS.items():
        lines += [f"## {file}", ""]
        for name in names:
            lines += table(found[name])
    return "\n".join(lines)


def spliced(page: str) -> str:
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{fields()}\n{END}{rest.split(END)[1]}"


def test_page_matches_the_schema():
    page = PAGE.read_text("utf-8")
    assert page == spliced(page), "docs/format.md is stale: run python tests/test_format_doc.py"


def test_no_stored_type_is_forgotten():
    documented = {name for names in SECTIONS.values() for name in names}
    assert documented == set(classes()) - NOT_STORED


def test_page_names_the_version():
    assert f"schema version {schema.SCHEMA_VERSION}" in PAGE.read_text("utf-8")


if __name__ == "__main__":
    PAGE.write_text(spliced(PAGE.read_text("utf-8")), "utf-8")
