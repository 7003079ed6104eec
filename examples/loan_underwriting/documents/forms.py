"""Applications, tax forms and identity cards, in three layouts each."""

from __future__ import annotations

from examples.loan_underwriting.documents.facts import TODAY, Facts
from examples.loan_underwriting.documents.sheet import Sheet
from examples.loan_underwriting.normalise import Value, dollars, fold

Entry = tuple[str, str, tuple[str, Value]]

APPLICATION = {
    "number": ("Application No.", "Reference", "Application number"),
    "date": ("Date of application", "Date", "Application date"),
    "name": ("Full name", "Applicant", "Applicant name"),
    "born": ("Date of birth", "Birth date", "DOB"),
    "ssn": ("Social Security No.", "SSN", "Social security number"),
    "address": ("Home address", "Address", "Residential address"),
    "phone": ("Telephone", "Phone", "Daytime phone"),
    "resident_since": ("Resident since", "At this address since", "Living there since"),
    "housing": ("Housing", "Rent or own", "Residence status"),
    "housing_cost": ("Monthly housing cost", "Rent / mortgage per month", "Housing payment (monthly)"),
    "employer": ("Employer", "Employer name", "Name of employer"),
    "title": ("Position", "Job title", "Occupation"),
    "employed_since": ("Employed since", "Start of employment", "Hire date"),
    "income": ("Gross monthly income", "Monthly income (gross)", "Income per month before tax"),
    "debt": ("Other monthly debt payments", "Monthly debt payments", "Existing loan payments per month"),
    "savings": ("Savings balance", "Savings", "Total savings"),
    "property": ("Property owned", "Main asset", "Other property"),
    "amount": ("Loan amount requested", "Amount requested", "Requested amount"),
    "months": ("Term (months)", "Repayment period", "Loan term"),
    "purpose": ("Purpose of loan", "Purpose", "Loan purpose"),
    "account": ("Account for payout", "Pay out to account", "Payout account no."),
}
IDENTITY = {
    "surname": ("Surname", "LN", "Last name"),
    "given": ("Given names", "FN", "First name"),
    "number": ("Card No.", "ID", "Identification number"),
    "born": ("Date of birth", "DOB", "Born"),
    "sex": ("Sex", "Sex", "Gender"),
    "issued": ("Date of issue", "ISS", "Issued"),
    "expires": ("Date of expiry", "EXP", "Valid until"),
    "address": ("Address", "Address", "Place of residence"),
}


def application(sheet: Sheet, facts: Facts) -> None:
    layout, person, date = sheet.style.layout, facts.person, sheet.date

    def entry(field: str, text: str, value: Value | None = None) -> Entry:
        return APPLICATION[field][layout], text, (field, fold(text) if value is None else value)

    def day(field: str, on) -> Entry:
        return entry(field, date(on), on.isoformat())

    def money(field: str, cents: int) -> Entry:
        return entry(field, "$" * (layout != 1) + dollars(cents), cents)

    head = [entry("number", facts.number), day("date", TODAY)]
    who = [
        entry("name", person.name), day("born", person.born), entry("ssn", person.ssn),
        entry("address", person.address), entry("phone", person.phone), day("resident_since", facts.resident_since),
        entry("housing", facts.housing.title()), money("housing_cost", facts.housing_cost),
    ]  # fmt: skip
    work = [
        entry("employer", facts.employer), entry("title", facts.title), day("employed_since", facts.employed_since),
        money("income", facts.stated_income), money("debt", facts.declared_debt), money("savings", facts.savings),
        entry("property", facts.property.capitalize()),
    ]  # fmt: skip
    months = (str(facts.months), f"{facts.months} months", f"{facts.months} months")[layout]
    loan = [
        money("amount", facts.amount), entry("months", months, facts.months), entry("purpose", facts.purpose),
        entry("account", facts.account),
    ]  # fmt: skip
    title = ("Personal Loan Application", "LOAN APPLICATION FORM", "Application for Consumer Credit")[layout]
    parts = ("Applicant", "Employment and finances", "Loan")
    if layout == 2:
        parts = ("1. About you", "2. Your work and money", "3. Your loan")
    elif layout == 1:
        parts = ("SECTION A - PERSONAL", "SECTION B - INCOME", "SECTION C - LOAN")
    sheet.text(306 if layout else 60, 58, title, size=15, bold=True, align="centre" if layout else "left")
    how, step, gap = (("right", 19, 190), ("below", 29, 0), ("inline", 20, 0))[layout]
    if layout == 1:  # two columns under small labels
        sheet.pairs(60, 92, head[:1], how, step, gap)
        sheet.pairs(330, 92, head[1:], how, step, gap)
        y = 136.0
        for part, entries in zip(parts, (who, work, loan), strict=True):
            sheet.frame(52, y - 12, 560, y + 4, fill=0.88)
            sheet.text(58, y, part, bold=True)
            half = (len(entries) + 1) // 2
            end = sheet.pairs(60, y + 20, entries[:half], how, step, gap)
            sheet.pairs(330, y + 20, entries[half:], how, step, gap)
            y = end + 18
    else:
        y = sheet.pairs(60, 92, head, how, step, gap)
        for part, entries in zip(parts, (who, work, loan), strict=True):
            sheet.text(60, y + 10, part, bold=True, size=11)
            sheet.rule(60, 552, y + 15)
            y = sheet.pairs(60, y + 32, entries, how, step, gap)
    y += 14
    small = sheet.style.size - 1.5
    sheet.text(
        60, y, "I confirm that everything stated above is complete and true to the best of my knowledge.", size=small
    )
    if facts.injection and facts.injected_into == "application":
        sheet.text(60, y + 16, facts.injection, size=small, grey=0.3)
    sheet.rule(60, 240, y + 52)
    sheet.text(60, y + 63, "Signature", size=small)


def tax_form(sheet: Sheet, facts: Facts) -> None:
    """A form like the W-2: numbered boxes; what is in them stands under, or (layout 2) beside, their captions."""
    assert facts.wages is not None
    wages, person, layout = facts.wages, facts.person, sheet.style.layout
    captions = {
        "ssn": ("a", ("Employee's social security number", "Employee's SSN", "Employee SSN")),
        "ein": ("b", ("Employer identification number (EIN)", "Employer's FED ID number", "Employer EIN")),
        "employer": ("c", ("Employer's name", "Employer name", "Employer")),
        "name": ("e", ("Employee's name", "Employee name", "Employee")),
        "address": ("f", ("Employee's address", "Employee address", "Address")),
        "wages": ("1", ("Wages, tips, other compensation", "Wages, tips, other comp.", "Wages and tips")),
        "federal": ("2", ("Federal income tax withheld", "Federal income tax withheld", "Federal tax withheld")),
        "social_wages": ("3", ("Social security wages",) * 3),
        "social": ("4", ("Social security tax withheld",) * 3),
        "medicare_wages": ("5", ("Medicare wages and tips",) * 3),
        "medicare": ("6", ("Medicare tax withheld",) * 3),
    }
    values: dict[str, tuple[str, Value]] = {
        "ssn": (person.ssn, person.ssn),
        "ein": (facts.ein, facts.ein),
        "employer": (facts.employer, fold(facts.employer)),
        "name": (person.name, fold(person.name)),
        "address": (person.address, fold(person.address)),
    }
    amounts = {
        "wages": wages.wages, "federal": wages.federal, "social_wages": wages.wages,
        "social": wages.social, "medicare_wages": wages.wages, "medicare": wages.medicare,
    }  # fmt: skip
    values |= {field: (dollars(cents), cents) for field, cents in amounts.items()}

    def caption(field: str) -> str:
        box, wording = captions[field]
        return f"{box}  {wording[layout]}" if layout != 2 else wording[layout]

    small = sheet.style.size - 1.5
    if layout == 2:
        sheet.text(60, 60, "Annual Wage and Tax Summary", size=14, bold=True)
        sheet.text(60, 84, "Tax year")
        sheet.text(290, 84, str(wages.year), field=("year", wages.year))
        for i, field in enumerate(captions):
            text, value = values[field]
            sheet.text(60, 112 + 22 * i, caption(field), grey=0.2)
            sheet.text(290, 112 + 22 * i, text, field=(field, value))
            sheet.rule(60, 552, 117 + 22 * i, grey=0.85)
        sheet.text(60, 390, "This information is being furnished to the Internal Revenue Service.", size=small)
        return
    sheet.text(60, 62, "Wage and Tax Statement", size=13, bold=True)
    sheet.text(430, 62, str(wages.year), size=16, bold=True, field=("year", wages.year))
    left, right = ["ssn", "ein", "employer", "name", "address"], list(amounts)
    for i, field in enumerate(left):
        y = 84 + 36 * i
        sheet.frame(52, y, 330, y + 36)
        sheet.text(57, y + 11, caption(field), size=small)
        sheet.text(70, y + 27, values[field][0], field=(field, values[field][1]))
    for i, field in enumerate(right):
        x, y = (330, 84 + 36 * i) if layout == 0 else (330 + 130 * (i % 2), 84 + 54 * (i // 2))
        wide, high = (235, 36) if layout == 0 else (130, 54)
        sheet.frame(x, y, x + wide, y + high)
        sheet.text(x + 5, y + 11, caption(field), size=small if layout == 0 else small - 0.7)
        sheet.text(x + wide - 8, y + high - 9, values[field][0], field=(field, values[field][1]), align="right")
    sheet.text(60, 330, "Copy B - to be filed with employee's federal tax return.", size=small)


def identity(sheet: Sheet, facts: Facts) -> None:
    """A card of about 5.4 x 3.4 inches (copied at double size)."""
    layout, person, date = sheet.style.layout, facts.person, sheet.date

    def entry(field: str, text: str, value: Value | None = None) -> Entry:
        return IDENTITY[field][layout], text, (field, fold(text) if value is None else value)

    entries = [
        entry("number", person.identity_number),
        entry("surname", person.last.upper()),
        entry("given", person.first.upper()),
        entry("born", date(person.born), person.born.isoformat()),
        entry("sex", person.sex),
        entry("issued", date(person.identity_issued), person.identity_issued.isoformat()),
        entry("expires", date(person.identity_expires), person.identity_expires.isoformat()),
        entry("address", person.address),
    ]
    sheet.frame(80, 90, 532, 362, fill=0.96)
    title = ("IDENTITY CARD", f"STATE OF {person.state} - DRIVER LICENSE", "National Identification Card")[layout]
    sheet.text(96, 112, title, size=13, bold=True)
    sheet.frame(96, 130, 190, 250, fill=0.8)
    how, step, gap = (("below", 29, 0), ("right", 26, 62), ("inline", 27, 0))[layout]
    sheet.pairs(210, 134, entries if layout else entries[:4], how, step, gap)
    if layout == 0:
        sheet.pairs(380, 134, entries[4:7], how, step, gap)
        sheet.pairs(210, 134 + 4 * step, entries[7:], how, step, gap)
