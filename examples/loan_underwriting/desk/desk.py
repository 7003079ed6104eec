"""One case from its documents to the money, as a durable workflow.

Three agents look at it: one reads the documents, one has the application scored, one checks compliance. They decide
what to call and when; what a call is made with comes from the case, never from a model, and what they leave out the
workflow does itself. The policy decides, or a person where it says so, and only then money moves, once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from examples.loan_underwriting.compliance.assess import Reports, features, measures
from examples.loan_underwriting.compliance.decide import Decision, decide
from examples.loan_underwriting.compliance.papers import Papers
from examples.loan_underwriting.compliance.policy import Policy
from examples.loan_underwriting.desk.case import SHARED, CaseFile, Fields, as_json, as_paper, letter, told
from examples.loan_underwriting.extraction import Extractor, GeometryExtractor
from examples.loan_underwriting.scoring.scorecard import Scorecard
from examples.loan_underwriting.services.world import IdentityAnswer, Report, SanctionMatch
from stille.agents.agent import Agent
from stille.agents.blackboard import Blackboard, Source
from stille.agents.durable.journal import DurableJournal
from stille.agents.errors import BudgetExceededError, ModelError, ToolError, ToolFailedError, TurnLimitError
from stille.agents.events import CallFinished, Run
from stille.agents.guard import Guard
from stille.agents.journal import ApprovalRequest, EffectCall
from stille.agents.models.base import ChatModel
from stille.agents.openapi import tools_from_openapi
from stille.agents.tools import Tool, ToolContext
from stille.agents.types import Json, Labels, Usage

PERSONAL: Labels = frozenset({"untrusted", "personal"})
MEASURED = {
    "credit_report": "bureau_file",
    "verify_identity": "identity_known",
    "find_employer": "employer_known",
    "search_sanctions": "sanction_similarity",
}
"""By service: the measure that cannot be known without its answer."""
STEPS = 4  # model calls of an agent before the workflow goes on without it


@dataclass
class Desk:
    """What all cases have in common.

    Attributes:
        model: of the agents.
        services: tools of the bureau, the registry and the bank, by name.
        today: that ages and expiries are counted from.
        guard: of one agent's work on one case, by a name and its tools: holds it to budget and policy.
        settles_s: in which the bank carries out a payment after its caller has given up or died. One that it does not
            know of may still come before that.
        again_s: waits before a service that could not be had is asked again; after the last one it is a person's turn.
    """

    model: ChatModel
    services: Mapping[str, Tool]
    policy: Policy
    card: Scorecard
    today: date
    guard: Callable[[str, Sequence[Tool]], Guard]
    extractor: Extractor = field(default_factory=GeometryExtractor)
    settles_s: float = 2.0
    again_s: Sequence[float] = (2.0, 10.0, 60.0)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def extract(self, path: Path) -> Json:
        """What a document says. One at a time: recognising characters takes all cores."""
        async with self._reading:
            return as_json(await asyncio.to_thread(self.extractor.extract, path))

    async def underwrite(self, journal: DurableJournal, application: str, folder: str) -> CaseFile:
        """The workflow of one case.

        Args:
            folder: of its documents.
        """
        case = _Case(self, journal, application, Path(folder))
        return await case.run()


async def connect(url: str, client_id: str = "desk") -> dict[str, Tool]:
    """Tools of the three services, from their OpenAPI documents.

    Asking for a report or an identity is a POST that changes nothing which a second one would not.
    """
    services: dict[str, Tool] = {}
    reads = {"bureau": ["credit_report"], "registry": ["verify_identity"], "bank": []}
    for name, reading in reads.items():
        tools = await tools_from_openapi(
            f"{url}/{name}/openapi.json",
            base_url=f"{url}/{name}",
            headers={"X-Client-Id": client_id},
            exclude=("*_health",),
            effects=dict.fromkeys(reading, "none"),
            timeout_s=10,
        )
        services |= {tool.name: tool for tool in tools}
    return services


class _Case:
    def __init__(self, desk: Desk, journal: DurableJournal, application: str, folder: Path):
        self.desk, self.journal, self.application, self.folder = desk, journal, application, folder
        self.board = Blackboard(Fields)
        self.usage = Usage()
        self.calls: list[str] = []
        self.completed: list[str] = []

    async def run(self) -> CaseFile:
        begun = datetime.fromisoformat(str(await self.journal.step("begun", _now)))
        reads = await self._read()
        papers = [as_paper(read) for read in reads]
        self._share(reads, begun)
        reports, unanswered, note = await self._ask(reads)
        measured = measures(papers, reports, self.desk.today)
        measured |= dict.fromkeys(unanswered)  # not known, which refers
        scored = self._features(papers, reports)
        decision = decide(self.desk.policy, self.desk.card, measured, scored)
        decided_by = "policy"
        if not decision.straight_through:
            decision, decided_by = await self._person(decision)
        loan, payment, status = None, None, "done"
        if decision.outcome == "approve":
            loan, payment, status = await self._pay()
        return CaseFile(
            application=self.application,
            outcome=decision.outcome,
            decided_by=decided_by,
            status=status,
            points=decision.points,
            reasons=decision.reasons,
            policy_version=decision.policy_version,
            measures=dict(measured),
            claims=self.board.to_json(),  # type: ignore[arg-type]
            disputed=list(self.board.conflicts()),
            calls=self.calls,
            completed=self.completed,
            loan=loan,
            payment=payment,
            note=note,
            letter=letter(self.application, decision, self._known("name"), decided_by, paid=payment is not None),
            prompt_tokens=self.usage.prompt_tokens,
            cached_tokens=self.usage.cached_tokens,
            completion_tokens=self.usage.completion_tokens,
        )

    # What the agents do

    async def _read(self) -> list[dict[str, Any]]:
        """All documents, in the order of their names; which first is the agent's choice."""
        files = await self.journal.step("documents", self._files)
        assert isinstance(files, list)
        done: dict[str, Json] = {}

        async def read(arguments: Any, context: ToolContext) -> Json:
            file = arguments["file"]
            if file not in done:
                done[file] = await self.desk.extract(self.folder / file)
            return told([done[file]])  # type: ignore[list-item]

        schema = {
            "type": "object",
            "properties": {"file": {"type": "string", "enum": files}},
            "required": ["file"],
            "additionalProperties": False,
        }
        reader = Tool(
            name="read_document",
            description="Reads the fields of a document.",
            parameters=schema,
            run=read,
            timeout_s=120,
            returns=PERSONAL,
        )
        if files:
            await self._let(
                "extraction",
                "You read the documents of a loan application. Read every document once, then say that you are done.",
                "Documents: " + ", ".join(map(str, files)),
                [reader],
            )
        reads: list[dict[str, Any]] = []
        for file in map(str, files):

            async def keep(file: str = file) -> Json:
                if file not in done:  # the agent left it out, or another process read it
                    done[file] = await self.desk.extract(self.folder / file)
                return done[file]

            kept = await self.journal.step(f"read.{file}", keep)
            assert isinstance(kept, dict)
            reads.append(kept)
        asked = {call.partition(" ")[2] for call in self.calls if call.startswith("read_document")}
        self.completed += [f"read_document {file}" for file in map(str, files) if file not in asked]
        return reads

    async def _ask(self, reads: Sequence[Mapping[str, Any]]) -> tuple[Reports, list[str], str]:
        """What bureau and registry know, the measures that nobody could answer, and the compliance agent's note."""
        get = lambda name: self._first(reads, name)  # noqa: E731
        who = {"ssn": get("ssn"), "name": get("name"), "born": get("born")}
        known = all(who.values())
        queries = {
            "credit_report": who if known else None,
            "verify_identity": {**who, "card": get("card")} if known and get("card") else None,
            "find_employer": {"name": get("employer")} if get("employer") else None,
            "search_sanctions": {"name": get("name"), "born": get("born") or ""} if get("name") else None,
        }
        bound = {name: self._bound(name, arguments) for name, arguments in queries.items() if arguments}
        answers: dict[str, Any] = {}
        summary = told(reads)
        first = [bound[name] for name in ("credit_report",) if name in bound]
        if first:
            run = await self._let(
                "scoring",
                "You prepare the scoring of a loan application: get the credit report. A scorecard gives the points, "
                "never you. Then say that you are done.",
                summary,
                first,
            )
            self._collect(run, answers)
        rest = [bound[name] for name in ("verify_identity", "find_employer", "search_sanctions") if name in bound]
        note = ""
        if rest:
            run = await self._let(
                "compliance",
                "You check the compliance of a loan application: verify the identity, find the employer, search the "
                "sanctions list. Then sum up in two sentences what was checked. Rules decide, never you.",
                summary,
                rest,
            )
            self._collect(run, answers)
            note = "" if run is None else str(run.output)
        for name, tool in bound.items():
            if name not in answers:
                answers[name] = await self._complete(tool)
        return _reports(answers), [MEASURED[name] for name in queries if answers.get(name) is None], note

    async def _let(self, name: str, instructions: str, task: str, tools: Sequence[Tool]) -> Run[str] | None:
        """Has an agent work. What it does not get done is the workflow's business; it may not hold a case up."""
        agent = Agent(
            name=name,
            model=self.desk.model,
            instructions=instructions,
            tools=tools,
            max_turns=STEPS,
            require_call=True,
            max_tokens=200,
        )
        guard = self.desk.guard(f"{self.application}-{name}", tools)
        run, error = None, None
        try:
            run = await agent.run(task, journal=self.journal, guard=guard, scope=self.application, observe=self._note)
        except (TurnLimitError, ModelError, BudgetExceededError) as problem:
            error = str(problem)
        if error is not None:
            self.completed.append(f"{name}: {error}")
        else:
            assert run is not None
            self.usage += run.usage
        return run

    def _note(self, event: Any) -> None:
        if isinstance(event, CallFinished) and event.outcome == "done":
            self.calls.append(" ".join([event.call.name, *map(str, event.call.arguments.values())]))

    def _bound(self, name: str, arguments: Mapping[str, Any]) -> Tool:
        """A service's tool that takes its arguments from the case: the model says when, and nothing else."""
        service = self.desk.services[name]

        async def run(_: Any, context: ToolContext) -> Json:
            return await service.call(arguments, context)

        return Tool(name=name, description=service.description, run=run, timeout_s=60, returns=service.returns)

    def _collect(self, run: Run[str] | None, answers: dict[str, Any]) -> None:
        for call in run.calls if run else ():
            if call.outcome == "done":
                answers[call.call.name] = json.loads(call.message.content)

    async def _complete(self, tool: Tool) -> Json:
        """An answer that no agent got; None if it cannot be had, which refers the case."""
        self.completed.append(tool.name)

        async def run() -> Json:
            try:
                return {"answer": await tool.call({})}
            except ToolError:
                return {"answer": None}
            except ToolFailedError as error:
                return {"failed": str(error)}

        for wait_s in (*self.desk.again_s, None):
            result = await self.journal.step(f"complete.{tool.name}", run)
            assert isinstance(result, dict)
            if "failed" not in result or wait_s is None:
                return result.get("answer")
            await self.journal.sleep(wait_s)
        raise AssertionError("the last wait is None")

    # What the desk does

    async def _files(self) -> Json:
        return [path.name for path in sorted(self.folder.glob("*.pdf"))]

    def _share(self, reads: Sequence[Mapping[str, Any]], at: datetime) -> None:
        """Writes what documents say to the blackboard, with where they say it."""
        for read in reads:
            for name, shared in SHARED.get(read["type"], {}).items():
                if (found := read["fields"].get(name)) is None:
                    continue
                source = Source(document=read["document"], page=found["page"] + 1, box=tuple(found["box"]))
                self.board.write(
                    shared, found["value"], by="extraction", source=source,
                    confidence=found["confidence"], labels=PERSONAL, at=at,
                )  # fmt: skip

    def _known(self, field: str) -> str | None:
        claims = self.board.claims(field)
        return str(claims[0].value) if claims else None

    def _first(self, reads: Sequence[Mapping[str, Any]], shared: str) -> str | None:
        """A field as the application form has it, or else the first document that does."""
        kinds = sorted(reads, key=lambda read: read["type"] != "application")
        for read in kinds:
            for name, target in SHARED.get(read["type"], {}).items():
                if target == shared and name in read["fields"]:
                    return str(read["fields"][name]["value"])
        return None

    def _features(self, papers: Papers, reports: Reports) -> Any:
        try:
            return features(papers, reports, self.desk.today)
        except ValueError:
            return None

    async def _person(self, decision: Decision) -> tuple[Decision, str]:
        """A person decides: approving pays out, rejecting declines an approval and upholds anything else."""
        reasons = "; ".join(reason.text for reason in decision.reasons) or "the amount is above what goes straight"
        request = ApprovalRequest(
            id=f"{self.journal.run_id}/decision",
            tool="grant_loan",
            arguments={"application": self.application, "suggested": decision.outcome, "points": decision.points},
            reason=reasons,
        )
        said = await self.journal.approval(request)
        outcome = "approve" if said.verdict == "approve" else "decline"
        return decision.model_copy(update={"outcome": outcome, "adverse": outcome == "decline"}), said.by

    async def _pay(self) -> tuple[str | None, str | None, str]:
        """Opens the loan and pays it out. What was done already is not done twice, so that it can be tried again while
        the bank cannot be reached; after a few times a person says whether to."""
        amount, months = self._known("amount"), self._known("months")
        ssn, account = self._known("ssn"), self._known("account")
        if not (amount and months and ssn and account):
            return None, None, "not paid out: the documents lack the amount, the months, a number or an account"
        cents, loan = int(amount), None
        new = {"application": self.application, "ssn": ssn, "amount": cents, "months": int(months)}
        for attempt in itertools.count(1):
            try:
                loan = (await self._effect("open_loan", new))["loan"]
                await self._effect("reserve_funds", {"loan": loan, "amount": cents})
                payment = await self._payment({"loan": loan, "account": account, "amount": cents})
                return loan, payment["payment"], "done"
            except ToolError as error:  # the bank says no
                return loan, None, f"not paid out: {error}"
            except ToolFailedError as error:
                if attempt <= len(self.desk.again_s):
                    await self.journal.sleep(self.desk.again_s[attempt - 1])
                    continue
                request = ApprovalRequest(
                    id=f"{self.journal.run_id}/pay-{attempt}",
                    tool="try_payment_again",
                    arguments={"application": self.application, "loan": loan},
                    reason=str(error),
                )
                said = await self.journal.approval(request)
                if said.verdict == "reject":
                    return loan, None, f"not paid out, {said.by} gave up: {error}"
        raise AssertionError("counting ends never")

    async def _effect(self, name: str, arguments: Mapping[str, Json]) -> Any:
        """An effect at the bank that knows idempotency keys."""
        tool = self.desk.services[name]
        wanted = EffectCall(
            key=tool.effect_key(arguments, self.application), tool=name, arguments=dict(arguments), effect=tool.effect
        )

        async def run(key: str) -> Json:
            return await tool.call(arguments, ToolContext(run_id=self.journal.run_id, idempotency_key=key))

        return await self.journal.effect(wanted, run)

    async def _payment(self, arguments: Mapping[str, Json]) -> Any:
        """The payment: the bank's older endpoint knows no keys, but can be asked for a reference, which is the key."""
        pay, find = self.desk.services["pay_out"], self.desk.services["find_payments"]
        key = f"{self.application}-{arguments['loan']}-{arguments['amount']}"

        async def run(key: str) -> Json:
            return await pay.call({**arguments, "reference": key}, ToolContext(run_id=self.journal.run_id))

        async def lookup(key: str) -> Json | None:
            for wait_s in (0.0, self.desk.settles_s):
                await asyncio.sleep(wait_s)
                found: Any = await find.call({"reference": key})
                if found:
                    return found[0]
            return None

        wanted = EffectCall(key=key, tool=pay.name, arguments=dict(arguments), effect="once")
        return await self.journal.effect(wanted, run, lookup)


def _reports(answers: Mapping[str, Any]) -> Reports:
    """Services' answers as the policy takes them; what could not be had counts as not known."""
    unknown = {"known": False, "born_matches": False, "name_matches": False, "card_matches": False}
    report, identity = answers.get("credit_report"), answers.get("verify_identity")
    return Reports(
        report=None if report is None else Report.model_validate(report),
        identity=IdentityAnswer.model_validate(identity or unknown),
        employer_known=bool((answers.get("find_employer") or {}).get("known")),
        sanctions=tuple(SanctionMatch.model_validate(each) for each in answers.get("search_sanctions") or ()),
    )


async def _now() -> Json:
    return datetime.now().astimezone().isoformat()
