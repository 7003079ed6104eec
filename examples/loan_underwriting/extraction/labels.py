"""The fields of each document type, and the wordings by which they are labelled. A new wording is a line here."""

from __future__ import annotations

from examples.loan_underwriting.extraction.types import Spec

HOUSING = {"rent": "RENT", "own": "OWN", "owner": "OWN", "tenant": "RENT"}
SEX = {"m": "M", "f": "F", "male": "M", "female": "F"}

FIELDS: dict[str, dict[str, Spec]] = {
    "application": {
        "number": Spec("code", ("Application No.", "Reference", "Application number")),
        "date": Spec("date", ("Date of application", "Date", "Application date")),
        "name": Spec("name", ("Full name", "Applicant", "Applicant name", "Name of applicant")),
        "born": Spec("date", ("Date of birth", "Birth date", "DOB")),
        "ssn": Spec("code", ("Social Security No.", "SSN", "Social security number")),
        "address": Spec("text", ("Home address", "Address", "Residential address")),
        "phone": Spec("text", ("Telephone", "Phone", "Daytime phone")),
        "resident_since": Spec("date", ("Resident since", "At this address since", "Living there since")),
        "housing": Spec("text", ("Housing", "Rent or own", "Residence status"), HOUSING),
        "housing_cost": Spec(
            "money", ("Monthly housing cost", "Rent / mortgage per month", "Housing payment (monthly)")
        ),
        "employer": Spec("text", ("Employer", "Employer name", "Name of employer")),
        "title": Spec("text", ("Position", "Job title", "Occupation")),
        "employed_since": Spec("date", ("Employed since", "Start of employment", "Hire date")),
        "income": Spec("money", ("Gross monthly income", "Monthly income (gross)", "Income per month before tax")),
        "debt": Spec(
            "money", ("Other monthly debt payments", "Monthly debt payments", "Existing loan payments per month")
        ),
        "savings": Spec("money", ("Savings balance", "Savings", "Total savings")),
        "property": Spec("text", ("Property owned", "Main asset", "Other property")),
        "amount": Spec("money", ("Loan amount requested", "Amount requested", "Requested amount")),
        "months": Spec("number", ("Term (months)", "Repayment period", "Loan term")),
        "purpose": Spec("text", ("Purpose of loan", "Purpose", "Loan purpose")),
        "account": Spec("code", ("Account for payout", "Pay out to account", "Payout account no.")),
    },
    "payslip": {
        "employer": Spec("text", letterhead=True),
        "name": Spec("name", ("Employee", "Employee name", "Name of employee")),
        "ssn": Spec("code", ("SSN", "Social security no.", "Employee SSN")),
        "title": Spec("text", ("Position", "Job title", "Occupation")),
        "start": Spec("date", ("Period start", "Period beginning", "From")),
        "end": Spec("date", ("Period end", "Period ending", "To")),
        "paid": Spec("date", ("Pay date", "Payment date", "Paid on")),
        "base": Spec("money", ("Regular pay", "Base salary", "Salary")),
        "overtime": Spec("money", ("Overtime", "Overtime pay", "Overtime hours"), optional=True),
        "federal": Spec("money", ("Federal income tax", "Federal tax", "Fed withholding")),
        "social": Spec("money", ("Social security", "Social security tax", "OASDI")),
        "medicare": Spec("money", ("Medicare", "Medicare tax", "Medicare EE")),
        "health": Spec("money", ("Health insurance", "Medical plan", "Health plan")),
        "gross": Spec("money", ("Gross pay", "Total gross", "Gross earnings"), then="gross_ytd"),
        "deductions": Spec("money", ("Total deductions", "Deductions total", "Total withheld")),
        "net": Spec("money", ("Net pay", "Take-home pay"), then="net_ytd"),
        "gross_ytd": Spec("money", ("Gross year to date", "Gross YTD")),
        "net_ytd": Spec("money", ("Net year to date", "Net YTD")),
    },
    "statement": {
        "bank": Spec("text", letterhead=True),
        "name": Spec("name", ("Account holder", "Customer", "Name")),
        "account": Spec("code", ("Account number", "Account no.", "Account")),
        "start": Spec("date", ("Period from", "From", "Statement start")),
        "end": Spec("date", ("Period to", "To", "Statement end")),
        "opening": Spec("money", ("Opening balance", "Beginning balance", "Balance brought forward")),
        "deposits": Spec("money", ("Total deposits", "Deposits and credits", "Total credits")),
        "withdrawals": Spec("money", ("Total withdrawals", "Withdrawals and debits", "Total debits")),
        "closing": Spec("money", ("Closing balance", "Ending balance", "Balance carried forward")),
    },
    "w2": {
        "year": Spec("number", ("Tax year", "Wage and Tax Statement")),
        "ssn": Spec("code", ("Employee's social security number", "Employee's SSN", "Employee SSN")),
        "ein": Spec("code", ("Employer identification number (EIN)", "Employer's FED ID number", "Employer EIN")),
        "employer": Spec("text", ("Employer's name", "Employer name", "Employer")),
        "name": Spec("name", ("Employee's name", "Employee name", "Employee")),
        "address": Spec("text", ("Employee's address", "Employee address", "Address")),
        "wages": Spec("money", ("Wages, tips, other compensation", "Wages, tips, other comp.", "Wages and tips")),
        "federal": Spec("money", ("Federal income tax withheld", "Federal tax withheld")),
        "social_wages": Spec("money", ("Social security wages",)),
        "social": Spec("money", ("Social security tax withheld",)),
        "medicare_wages": Spec("money", ("Medicare wages and tips",)),
        "medicare": Spec("money", ("Medicare tax withheld",)),
    },
    "identity": {
        "number": Spec("code", ("Card No.", "ID", "Identification number")),
        "surname": Spec("name", ("Surname", "LN", "Last name")),
        "given": Spec("name", ("Given names", "FN", "First name")),
        "born": Spec("date", ("Date of birth", "DOB", "Born")),
        "sex": Spec("text", ("Sex", "Gender"), SEX),
        "issued": Spec("date", ("Date of issue", "ISS", "Issued")),
        "expires": Spec("date", ("Date of expiry", "EXP", "Valid until")),
        "address": Spec("text", ("Address", "Place of residence")),
    },
}
TITLES: dict[str, tuple[str, ...]] = {
    "application": ("Personal Loan Application", "Loan Application Form", "Application for Consumer Credit"),
    "payslip": ("Earnings Statement", "Pay Slip", "Payroll Advice"),
    "statement": ("Account Statement", "Checking Statement", "Statement of account"),
    "w2": ("Wage and Tax Statement", "Annual Wage and Tax Summary"),
    "identity": ("Identity Card", "Driver License", "National Identification Card"),
}
"""A title shows a document's type; so do its labels."""
