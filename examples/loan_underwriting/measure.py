"""How well fields are extracted: field-exact accuracy by document type, for text PDFs and scans apart.

    python -m examples.loan_underwriting.measure --cases 60 --json extraction.json

A field counts if its normalised value is exactly the truth (money to the cent, dates, text in upper case with its
spaces). A missing field is wrong; transactions are compared by their position, so that a row that is not seen makes
all after it wrong; a field found that is not in the document
counts as extra.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from examples.loan_underwriting.documents.facts import make_facts
from examples.loan_underwriting.documents.generate import write_case
from examples.loan_underwriting.extraction import Extraction, GeometryExtractor
from examples.loan_underwriting.extraction.extractor import ROWS

FIRST_SEED = 5000
"""Cases that the extractor's rules were not written on."""


def compare(result: Extraction, document: dict[str, Any]) -> dict[str, Any]:
    """One document's extraction against its truth, an entry of `documents` in truth.json."""
    found = result.all_fields()
    truth = {field["name"]: field for field in document["fields"]}
    wrong = []
    overlaps = 0
    for name, field in truth.items():
        got = found.get(name)
        if got is None or got.value != field["value"]:
            wrong.append(
                {
                    "field": name,
                    "truth": field["value"],
                    "found": got.value if got else None,
                    "unsure": name in result.unsure or (ROWS in result.unsure and name.startswith(ROWS)),
                }
            )
        elif got.page == field["page"]:
            a, b = got.box, field["box"]
            overlaps += min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    return {
        "type": document["type"],
        "classified": result.type,
        "layout": document["layout"],
        "scanned": document["scanned"],
        "pages": document["pages"],
        "fields": len(truth),
        "wrong": wrong,
        "extra": sorted(found.keys() - truth.keys()),
        "placed": overlaps,
        "unsure": len(result.unsure),
    }


def _case(job: tuple[Path, int, float]) -> list[dict[str, Any]]:
    folder, seed, scanned = job
    facts = make_facts(seed)
    truth = write_case(folder / facts.number, facts, scanned)
    documents = []
    for document in truth["documents"]:
        started = time.perf_counter()
        result = GeometryExtractor().extract(folder / facts.number / document["file"])
        seconds = time.perf_counter() - started
        name = f"{facts.number}/{document['file']}"
        documents.append({"document": name, "seconds": seconds, **compare(result, document)})
    return documents


def measure(cases: int, seed: int = FIRST_SEED, scanned: float = 0.2, processes: int = 1) -> dict[str, Any]:
    """Generates cases, extracts them, and says what was right. `unsure` of wrong: how many of the errors it flagged."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(Path(folder), seed + i, scanned) for i in range(cases)]
        if processes > 1:
            with ProcessPoolExecutor(processes) as pool:
                documents = [d for case in pool.map(_case, jobs) for d in case]
        else:
            documents = [d for job in jobs for d in _case(job)]
    groups: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for document in documents:
        source = "scan" if document["scanned"] else "text"
        for kind in (document["type"], "all"):
            groups[source, kind].update(
                documents=1,
                pages=document["pages"],
                misclassified=document["classified"] != document["type"],
                fields=document["fields"],
                exact=document["fields"] - len(document["wrong"]),
                wrong_unflagged=sum(not w["unsure"] for w in document["wrong"]),
                extra=len(document["extra"]),
                placed=document["placed"],
                unsure=document["unsure"],
                milliseconds=round(1000 * document["seconds"]),
            )
    rows = [
        {"source": source, "type": kind, **count, "accuracy": count["exact"] / count["fields"]}
        for (source, kind), count in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1] == "all", g[0][1]))
    ]
    errors = [{"document": d["document"], "scanned": d["scanned"], **w} for d in documents for w in d["wrong"]]
    return {"cases": cases, "seed": seed, "scanned": scanned, "table": rows, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument(
        "--scanned", type=float, default=0.2, help="share of documents that are scans (about 5 s a page)"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(args.cases, args.seed, args.scanned, args.processes)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    columns = ("documents", "pages", "misclassified", "fields", "exact", "wrong_unflagged", "extra", "placed", "unsure")
    print(f"{'source':7}{'type':12}" + "".join(f"{c:>16}" for c in columns) + f"{'accuracy':>10}{'s/page':>8}")
    for row in report["table"]:
        cells = "".join(f"{row[c]:>16}" for c in columns)
        pace = row["milliseconds"] / 1000 / row["pages"]
        print(f"{row['source']:7}{row['type']:12}{cells}{row['accuracy']:>10.4f}{pace:>8.2f}")
    for error in report["errors"][:20]:
        print(f"{error['document']} {error['field']}: {error['truth']!r}, found {error['found']!r}")


if __name__ == "__main__":
    main()
