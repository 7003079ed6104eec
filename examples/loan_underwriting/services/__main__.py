"""Serves the credit bureau, the registry and core banking, all in one process or one of them.

python -m examples.loan_underwriting.services --world loans/world.json --ledger ledger.sqlite
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from pathlib import Path

import uvicorn

from examples.loan_underwriting.services import apps
from examples.loan_underwriting.services.faults import REALISTIC, Faults
from examples.loan_underwriting.services.ledger import Ledger
from examples.loan_underwriting.services.world import load_world

CREATE = {
    "all": apps.create_services,
    "bureau": apps.create_bureau,
    "registry": apps.create_registry,
    "bank": apps.create_bank,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=CREATE, default="all")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--world", type=Path, help="world.json of generated cases; without it, that of the first 60")
    parser.add_argument("--ledger", type=Path, default=Path("ledger.sqlite"))
    parser.add_argument("--faults", help='JSON such as {"error": 0.1, "seed": 3}; "none" for a reliable service')
    parser.add_argument("--parent", type=int, help="process number of the parent: end when it has, however it ended")
    args = parser.parse_args()
    if args.parent:
        threading.Thread(target=outlive, args=(args.parent,), daemon=True).start()
    faults = REALISTIC
    if args.faults:
        faults = Faults() if args.faults == "none" else Faults.model_validate_json(args.faults)
    app = CREATE[args.service](load_world(args.world), Ledger(args.ledger), faults)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


def outlive(parent: int) -> None:
    """Ends this process soon after its parent; a parent that is killed cannot see to it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
