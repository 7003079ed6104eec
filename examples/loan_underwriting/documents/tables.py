"""Pay slips and bank statements: documents made of tables, in three layouts each."""

from __future__ import annotations

from examples.loan_underwriting.documents.facts import Facts, Slip, Statement
from examples.loan_underwriting.documents.sheet import Sheet
from examples.loan_underwriting.normalise import dollars, fold

ROWS_PER_PAGE = 28


def payslip(sheet: Sheet, facts: Facts, slip: Slip) -> None:
    layout, date = sheet.style.layout, sheet.date
    label = lambda *wordings: wordings[layout]  # noqa: E731
    sheet.text(60, 58, facts.employer, size=13, bold=True, field=("employer", fold(facts.employer)))
    sheet.text(552, 58, label("Earnings Statement", "PAY SLIP", "Payroll Advice"), size=11, bold=True, align="right")
    sheet.rule(60, 552, 66)
    how, step, gap = (("right", 17, 105), ("inline", 17, 0), ("below", 27, 0))[layout]
    who = [
        (label("Employee", "Employee name", "Name of employee"), slip.name, ("name", fold(slip.name))),
        (label("SSN", "Social security no.", "Employee SSN"), facts.person.ssn, ("ssn", facts.person.ssn)),
        (label("Position", "Job title", "Occupation"), facts.title, ("title", fold(facts.title))),
    ]
    when = [
        (label("Period start", "Period beginning", "From"), date(slip.start), ("start", slip.start.isoformat())),
        (label("Period end", "Period ending", "To"), date(slip.end), ("end", slip.end.isoformat())),
        (label("Pay date", "Payment date", "Paid on"), date(slip.paid), ("paid", slip.paid.isoformat())),
    ]
    sheet.pairs(60, 86, who, how, step, gap)
    y = sheet.pairs(340, 86, when, how, step, gap) + 14
    earnings = [(label("Regular pay", "Base salary", "Salary"), "base", slip.base)]
    if slip.overtime:
        earnings.append((label("Overtime", "Overtime pay", "Overtime hours"), "overtime", slip.overtime))
    deductions = [
        (label("Federal income tax", "Federal tax", "Fed withholding"), "federal", slip.federal),
        (label("Social security", "Social security tax", "OASDI"), "social", slip.social),
        (label("Medicare", "Medicare tax", "Medicare EE"), "medicare", slip.medicare),
        (label("Health insurance", "Medical plan", "Health plan"), "health", slip.health),
    ]
    gross, total, net = (
        label("Gross pay", "Total gross", "Gross earnings"),
        label("Total deductions", "Deductions total", "Total withheld"),
        label("Net pay", "NET PAY", "Take-home pay"),
    )
    ytd = label("YTD", "Year to date", "To date")

    def row(x: float, right: float, y: float, text: str, field: str, cents: int, bold: bool = False) -> None:
        sheet.text(x, y, text, bold=bold)
        sheet.text(right, y, dollars(cents), field=(field, cents), align="right", bold=bold)

    if layout == 1:  # earnings and deductions beside each other
        for x, heading in ((60, "EARNINGS"), (320, "DEDUCTIONS")):
            sheet.frame(x - 4, y - 11, x + 238, y + 4, fill=0.86)
            sheet.text(x, y, heading, bold=True)
        for i, (text, field, cents) in enumerate(earnings):
            row(60, 290, y + 18 + 16 * i, text, field, cents)
        for i, (text, field, cents) in enumerate(deductions):
            row(320, 552, y + 18 + 16 * i, text, field, cents)
        y += 18 + 16 * 4 + 8
        sheet.rule(60, 552, y - 10)
        row(60, 290, y, gross, "gross", slip.gross, bold=True)
        row(320, 552, y, total, "deductions", slip.deductions, bold=True)
        y += 30
        row(60, 290, y, f"Gross {ytd.lower()}", "gross_ytd", slip.gross_ytd)
        row(320, 552, y, f"Net {ytd.lower()}", "net_ytd", slip.net_ytd)
        y += 30
        sheet.frame(316, y - 13, 558, y + 6)
        row(320, 552, y, net, "net", slip.net, bold=True)
        return
    sheet.text(60, y, label("Description", "", "Item"), bold=True)
    sheet.text(430, y, label("Current", "", "This period"), bold=True, align="right")
    sheet.text(552, y, ytd, bold=True, align="right")
    sheet.rule(60, 552, y + 5)
    y += 20
    for text, field, cents in earnings:
        row(60, 430, y, text, field, cents)
        y += 16
    row(60, 430, y, gross, "gross", slip.gross, bold=True)
    sheet.text(552, y, dollars(slip.gross_ytd), field=("gross_ytd", slip.gross_ytd), align="right", bold=True)
    y += 26
    for text, field, cents in deductions:
        row(60, 430, y, text, field, cents)
        y += 16
    row(60, 430, y, total, "deductions", slip.deductions, bold=True)
    y += 10
    sheet.rule(60, 552, y)
    y += 16
    row(60, 430, y, net, "net", slip.net, bold=True)
    sheet.text(552, y, dollars(slip.net_ytd), field=("net_ytd", slip.net_ytd), align="right", bold=True)


def statement(sheet: Sheet, facts: Facts, months: Statement) -> None:
    """Layout 0 has one signed column of amounts, 1 one for each direction, 2 puts the summary below the table."""
    layout, date = sheet.style.layout, sheet.date
    label = lambda *wordings: wordings[layout]  # noqa: E731
    sheet.text(60, 56, facts.bank, size=14, bold=True, field=("bank", fold(facts.bank)))
    sheet.text(
        552, 56, label("Account Statement", "CHECKING STATEMENT", "Statement of account"), align="right", bold=True
    )
    how, step, gap = (("right", 16, 110), ("inline", 16, 0), ("right", 16, 100))[layout]
    holder = [
        (label("Account holder", "Customer", "Name"), facts.person.name, ("name", fold(facts.person.name))),
        (label("Account number", "Account no.", "Account"), facts.account, ("account", facts.account)),
    ]
    period = [
        (label("Period from", "From", "Statement start"), date(months.start), ("start", months.start.isoformat())),
        (label("Period to", "To", "Statement end"), date(months.end), ("end", months.end.isoformat())),
    ]
    sums = [
        (label("Opening balance", "Beginning balance", "Balance brought forward"), "opening", months.opening),
        (label("Total deposits", "Deposits and credits", "Total credits"), "deposits", months.deposits),
        (label("Total withdrawals", "Withdrawals and debits", "Total debits"), "withdrawals", months.withdrawals),
        (label("Closing balance", "Ending balance", "Balance carried forward"), "closing", months.closing),
    ]
    summary = [(text, dollars(cents), (field, cents)) for text, field, cents in sums]
    sheet.pairs(60, 80, holder, how, step, gap)
    y = sheet.pairs(340, 80, period, how, step, gap) + 10
    if layout != 2:
        sheet.pairs(60, y, summary[:2], how, step, gap)
        y = sheet.pairs(340, y, summary[2:], how, step, gap) + 10

    def header(y: float) -> None:
        sheet.frame(56, y - 11, 556, y + 4, fill=0.88)
        sheet.text(60, y, label("Date", "Date", "Posted"), bold=True)
        sheet.text(140, y, label("Description", "Transaction", "Details"), bold=True)
        if layout == 1:
            sheet.text(390, y, "Withdrawals", bold=True, align="right")
            sheet.text(470, y, "Deposits", bold=True, align="right")
        else:
            sheet.text(450, y, "Amount", bold=True, align="right")
        sheet.text(552, y, label("Balance", "Balance", "New balance"), bold=True, align="right")

    header(y)
    y += 17
    for i, row in enumerate(months.rows):
        if i == ROWS_PER_PAGE:
            sheet.text(552, 760, "continued on next page", align="right", size=7)
            sheet.next_page()
            y = 70.0
            header(y)
            y += 17
        at = f"transactions[{i}]."
        sheet.text(60, y, date(row.on), field=(at + "date", row.on.isoformat()))
        sheet.text(140, y, row.what, field=(at + "what", fold(row.what)))
        if layout == 1:
            x = 470 if row.amount > 0 else 390
            sheet.text(x, y, dollars(abs(row.amount)), field=(at + "amount", row.amount), align="right")
        else:
            sheet.text(450, y, dollars(row.amount), field=(at + "amount", row.amount), align="right")
        sheet.text(552, y, dollars(row.balance), field=(at + "balance", row.balance), align="right")
        y += 17
    if layout == 2:
        sheet.rule(60, 552, y - 8)
        y = sheet.pairs(60, y + 8, summary, "right", 15, 150)
    sheet.text(
        60, y + 18, "Please examine this statement at once. Errors must be reported within 60 days.", size=7, grey=0.3
    )
    if facts.injection and facts.injected_into == "statement":
        sheet.text(60, y + 30, facts.injection, size=7, grey=0.3)
