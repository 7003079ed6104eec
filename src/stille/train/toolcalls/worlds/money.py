"""Banking, a shop, insurance."""

# fmt: off
# ruff: noqa: E501  (a line is a template)
from typing import Annotated, Any

from stille.train.toolcalls.kinds import (
    Address,
    Clock,
    Count,
    Day,
    Money,
    Note,
    Percent,
    Person,
    code,
    enum,
    pool,
    whole,
)
from stille.train.toolcalls.tools import ToolError, World, tool, world

Account = Annotated[str, enum("checking savings joint business", "Which account?")]
Currency = Annotated[str, enum("USD GBP CHF JPY SEK NOK CAD AUD", "Which currency?", {
    "USD": "(USD|US dollars|dollars)", "GBP": "(GBP|pounds|British pounds)", "CHF": "(CHF|Swiss francs)",
    "JPY": "(JPY|yen|Japanese yen)", "SEK": "(SEK|Swedish kronor)", "NOK": "(NOK|Norwegian kroner)",
    "CAD": "(CAD|Canadian dollars)", "AUD": "(AUD|Australian dollars)",
})]
Card = Annotated[str, code("", 1000, 9999, "What are the last four digits of the card?", "")]
Transfer = Annotated[str, code("TX-", 10000, 99999, "What is the number of the transfer?", "that transfer")]
Months = Annotated[int, whole(3, 60, "Over how many months?", step=3, unit="months")]


@world
class Bank(World):
    """Accounts, transfers, cards and loans."""

    name = "bank"

    def balance(self, account: str) -> float:
        return self.get("balance", account, default=self.number(200, 9000, "balance", account))

    @tool(
        "get_balance check_balance account_balance", "(Returns|Shows|Looks up) the (current balance|money) of an account.",
        "tell you the balance of an account", "account|account_type|from_account: (the account|which account to look at)",
        ["(check|show me|tell me|look up) the balance of my {account} account",
         "?(what's|what is) the balance (on|of|in) my {account} account",
         "?how much (money|cash) (is|do I have) (in|on) my {account} account",
         "(find out|see) how much is left on the {account} account", "?{account} account balance"],
        ["Your {account} account holds {balance} euros.", "There (is|are) {balance} euros on the {account} account.",
         "The balance of the {account} account is {balance} euros."],
    )
    def get_balance(self, account: Account) -> dict[str, Any]:
        return {"balance": self.balance(account)}

    @tool(
        "transfer_money send_money make_transfer pay_person", "(Sends|Transfers) money to (somebody|another person|a payee).",
        "send money to somebody",
        "recipient|to|payee: who (gets|receives) the money; amount|sum: how much, in euros; "
        "account|from_account|source: the account that (pays|it is taken from); note|memo|reference: text for the recipient",
        ["(send|transfer|wire) {amount} to {recipient}[ from my {account} account][ with the note \"{note}\"]",
         "(pay|give) {recipient} {amount}[ out of the {account} account][, (memo|reference): {note}]",
         "(make|set up) a transfer of {amount}[ from {account}] to {recipient}[ saying \"{note}\"]",
         "?I owe {recipient} {amount}, (send it|transfer it|pay it)[ from {account}][ with the text \"{note}\"]",
         "move {amount}[ from my {account} account] over to {recipient}[, note: {note}]"],
        ["I (sent|transferred) {amount} euros to {recipient}. (The number of the transfer is|It has the number) {id}.",
         "Done: {recipient} gets {amount} euros (transfer {id})."], {"id": Transfer},
    )
    def transfer_money(
        self, recipient: Person, amount: Money, account: Account = "checking", note: Note = ""
    ) -> dict[str, Any]:
        if amount > (left := self.balance(account)):
            raise ToolError(f"the {account} account has only {left} euros")
        self.set("balance", account, to=round(left - amount, 2))
        return {"id": self.set("last", to=self.new("TX-")), "balance": round(left - amount, 2)}

    @tool(
        "cancel_transfer stop_transfer recall_payment", "(Cancels|Stops) a transfer that is not (booked|executed) yet.",
        "cancel a transfer", "transfer_id|id|transfer: (the number of the transfer|its number)",
        ["(cancel|stop|recall) (the transfer |transfer |payment ){transfer_id}", "?transfer {transfer_id} was a mistake, (cancel it|stop it)",
         "(take|call) back {transfer_id}", "make sure {transfer_id} does not go out"],
        ["The transfer {transfer_id} is cancelled.", "I (stopped|cancelled) {transfer_id}."],
    )
    def cancel_transfer(self, transfer_id: Transfer) -> dict[str, Any]:
        if self.get("last") != transfer_id:
            self.known("transfer", transfer_id, of=5)
        return {"status": "cancelled"}

    @tool(
        "list_transactions recent_transactions account_history", "(Lists|Shows) the (latest|most recent) transactions of an account.",
        "list recent transactions", "account|account_type: whose transactions; limit|count|max_results: how many (at most|to list)",
        ["(list|show me|give me) the (last|latest|most recent) {limit} transactions (on|of) my {account} account",
         "(show|list) {limit} transactions from {account}", "?what were the last {limit} (bookings|transactions) on my {account} account",
         "get the {limit} newest (bookings|entries) of the {account} account"],
        ["The latest (transactions|bookings) of the {account} account: {transactions}.", "On {account} I (see|found): {transactions}."],
    )
    def list_transactions(self, account: Account, limit: Count) -> dict[str, Any]:
        shops = ("groceries", "rent", "fuel", "cinema", "pharmacy", "salary", "books", "gym", "coffee", "insurance")
        found = [f"{self.pick(shops, account, i)} {self.number(4, 900, account, i)}" for i in range(min(limit, 4))]
        return {"transactions": found}

    @tool(
        "block_card freeze_card lock_card", "(Blocks|Freezes) a (lost or stolen |)card.", "block a card",
        "card|card_number|last_digits: the last four digits of the card; reason|why: why it is blocked",
        ["(block|freeze|lock|disable) (my|the) card ending in {card}[ because it (is|was) {reason}]",
         "?my card {card} must not be used any more[, it (is|was) {reason}]",
         "(block|lock) card {card}[, it was {reason}]", "?card {card} must be blocked (now|right away)[, it is {reason}]"],
        ["The card ending in {card} is blocked.", "I blocked card {card}. A new one comes in {days} days."],
    )
    def block_card(
        self, card: Card, reason: Annotated[str, enum("lost stolen damaged", "What happened to it?")] = "lost"
    ) -> dict[str, Any]:
        self.set("card", card, to="blocked")
        return {"status": "blocked", "days": self.number(3, 9, card)}

    @tool(
        "convert_currency exchange_amount currency_converter", "Converts euros (to|into) another currency (at today's rate|).",
        "convert euros to other currencies", "amount|value: in euros; currency|to|target: (the currency to convert to|its code)",
        ["(convert|change|exchange) {amount} (to|into) {currency}", "?(how much is|what is) {amount} in {currency}",
         "?how many {currency} do I get for {amount}", "(calculate|work out) {amount} in {currency}", "?{amount} in {currency}"],
        ["{amount} euros are {result} {currency}.", "That makes {result} {currency}.", "You get {result} {currency} for {amount} euros."],
    )
    def convert_currency(self, amount: Money, currency: Currency) -> dict[str, Any]:
        rates = dict(USD=1.09, GBP=0.85, CHF=0.95, JPY=162.0, SEK=11.3, NOK=11.6, CAD=1.48, AUD=1.65)
        return {"result": round(amount * rates[currency], 2)}

    @tool(
        "loan_payment calculate_loan monthly_rate", "Calculates the monthly payment of a loan.", "work out the monthly payment of a loan",
        "amount|principal: of the loan, in euros; months|term|duration: (how long it runs|its term), in months; "
        "interest|rate|annual_rate: (yearly interest|interest per year) in percent",
        ["(calculate|work out|compute) the monthly (payment|rate) for a loan of {amount} over {months} at {interest} percent",
         "?what would {amount} over {months} at {interest}% cost (me|) per month",
         "?I want to borrow {amount} for {months} at {interest}% (interest|a year): what is the monthly payment"],
        ["It would cost {payment} euros a month.", "The monthly payment is {payment} euros."],
    )
    def loan_payment(
        self, amount: Money, months: Months, interest: Annotated[int, whole(1, 12, "At what interest?")]
    ) -> dict[str, Any]:
        rate = interest / 1200
        return {"payment": round(amount * rate / (1 - (1 + rate) ** -months), 2)}

    @tool(
        "create_standing_order schedule_payment recurring_transfer", "Sets up a (payment that repeats every month|standing order).",
        "set up standing orders",
        "recipient|to|payee: who is paid; amount|sum: each time, in euros; start|start_date|from_date: day of the first payment",
        ["(set up|create) a (standing order|monthly payment) of {amount} to {recipient}(, starting| from| beginning) {start}",
         "(pay|send) {recipient} {amount} every month from {start} on", "?{recipient} should get {amount} each month, (first|starting) {start}"],
        ["From {start} on {recipient} gets {amount} euros every month.", "The standing order for {recipient} is set up ({id})."],
    )
    def create_standing_order(self, recipient: Person, amount: Money, start: Day) -> dict[str, Any]:
        return {"id": self.new("SO-"), "status": "active"}


Order = Annotated[str, code("", 10000, 99999, "What is the order number?", "that order")]
Product = Annotated[str, pool(("desk lamp", "coffee grinder", "rain jacket", "bike helmet", "wool blanket", "yoga mat", "kettle", "board game", "headphones", "backpack", "camping stove", "garden hose", "office chair", "phone case", "water bottle", "running shoes", "keyboard", "sleeping bag", "toolbox", "picture frame", "alarm clock", "bread knife", "umbrella", "travel pillow", "wall clock", "cutting board", "laptop sleeve", "tent", "candle set", "hiking boots", "frying pan", "beach towel", "flashlight", "notebook", "screwdriver set", "teapot"), "Which product?")]
Reason = Annotated[str, enum("damaged wrong_size not_needed late wrong_item", "Why?", {
    "damaged": "(damaged|broken)", "wrong_size": "(the wrong size|not my size)", "not_needed": "(not needed any more|no longer needed)",
    "late": "(late|too late)", "wrong_item": "(the wrong item|not what I ordered)",
})]


@world
class Shop(World):
    """Products, orders, returns."""

    name = "shop"

    @tool(
        "search_products find_products product_search", "(Searches|Looks through) the (shop|catalogue) for products.", "search for products",
        "query|term|keyword: what to (look|search) for; max_price|price_limit: (highest price|not more expensive than this), in euros",
        ["(search|look) for a {query}[ (for under|below|up to) {max_price}]", "(find|show me) a {query}[ that costs (at most|less than) {max_price}]",
         "?do you have a {query}[ for less than {max_price}]", "?I'm looking for a {query}[, not more than {max_price}]",
         "?is there a {query}[ under {max_price}] (in the shop|in stock|)"],
        ["I found: {found}.", "There (is|are) {found}."],
    )
    def search_products(self, query: Product, max_price: Money = 0) -> dict[str, Any]:
        brands = ("Nordal", "Tavo", "Lumi", "Kesta", "Arbor")
        price = self.number(8, 160, query)
        if max_price and price > max_price:
            raise ToolError(f"nothing found below {max_price} euros")
        return {"found": [f"{self.pick(brands, query)} {query}, {price} euros"]}

    @tool(
        "place_order order_product buy_item", "(Orders|Buys) a product.", "order products",
        "product|item|article: what is ordered; quantity|count|amount: how many; address|ship_to|delivery_address: where it (is sent|goes)",
        ["(order|buy|get me) {quantity} (times|of the|x) {product}[ (to|and send it to) {address}]",
         "(place|make) an order for {quantity} x {product}[, delivered to {address}]", "?I (want|would like|'d like) {quantity} of the {product}[, send it to {address}]",
         "put in an order: {product}, quantity {quantity}[, ship to {address}]"],
        ["I ordered {quantity} x {product}. The order number is {order_id}.", "Ordered. (Your order number is|It is order) {order_id}; it comes to {total} euros."],
        {"order_id": Order},
    )
    def place_order(self, product: Product, quantity: Count, address: Address = "") -> dict[str, Any]:
        number = self.new("")
        self.set("order", number, to="open")
        return {"order_id": number, "total": quantity * self.number(8, 160, product)}

    @tool(
        "track_order order_status where_is_order", "(Tells|Shows) where an order is.", "track orders", "order_id|order|order_number: the number of the order",
        ["(track|check|look up) (my |)order {order_id}", "?where is (my |)order {order_id}", "?(what's|what is) the status of order {order_id}",
         "?has order {order_id} (been shipped|left) (yet|already)", "find out when {order_id} (arrives|comes)"],
        ["Order {order_id} is {status} and (arrives|should arrive) in {days} days.", "Your order {order_id} is {status}."],
    )
    def track_order(self, order_id: Order) -> dict[str, Any]:
        self.known("order", order_id)
        status = self.get("order", order_id, default=self.pick(("packed", "on its way", "out for delivery"), order_id))
        return {"status": status, "days": self.number(1, 6, order_id)}

    @tool(
        "cancel_order stop_order", "Cancels an order that (was not sent|has not been shipped) yet.", "cancel orders",
        "order_id|order|order_number: the number of the order",
        ["(cancel|stop|call off) (my |)order {order_id}", "?I don't (need|want) order {order_id} any more, (cancel it|stop it)", "(cancel|drop) number {order_id}"],
        ["Order {order_id} is cancelled.", "I cancelled {order_id}."],
    )
    def cancel_order(self, order_id: Order) -> dict[str, Any]:
        if self.get("order", order_id) == "cancelled":
            raise ToolError(f"order {order_id} is cancelled already")
        self.known("order", order_id)
        self.set("order", order_id, to="cancelled")
        return {"status": "cancelled"}

    @tool(
        "return_item start_return request_refund", "(Starts|Registers) a return.", "start returns",
        "order_id|order|order_number: of the purchase; reason|why: why it comes back",
        ["(return|send back) order {order_id}(, it is| because it is|: it's) {reason}", "?I want to (return|send back) {order_id}, it (is|was) {reason}",
         "(start|register) a return for order {order_id} (as|because) it is {reason}", "?order {order_id} is {reason}, I want my money back"],
        ["The return is registered: {return_id}.", "You can send it back under {return_id}; the refund is {refund} euros."],
    )
    def return_item(self, order_id: Order, reason: Reason) -> dict[str, Any]:
        self.known("order", order_id)
        return {"return_id": self.new("R"), "refund": self.number(5, 200, order_id)}

    @tool(
        "change_address update_shipping_address redirect_order", "(Changes|Updates) where an order is delivered.", "change a delivery address",
        "order_id|order|order_number: which order; address|new_address|ship_to: (where it should go|the new address)",
        ["(deliver|send|redirect) order {order_id} to {address}(| instead)", "(change|update) the (delivery |shipping |)address of (order |){order_id} to {address}",
         "?order {order_id} should go to {address}"],
        ["Order {order_id} goes to {address} now.", "The address is changed to {address}."],
    )
    def change_address(self, order_id: Order, address: Address) -> dict[str, Any]:
        self.known("order", order_id)
        return {"status": "updated", "address": address}

    @tool(
        "apply_coupon redeem_code use_voucher", "(Applies|Redeems) a (coupon|discount) code to an order.", "apply coupons",
        "order_id|order: which order; coupon|coupon_code|voucher: the code",
        ["(apply|use|redeem) (the |)(code|coupon|voucher) {coupon} (for|on|with) order {order_id}", "?I have (a coupon|the code) {coupon} for order {order_id}",
         "take {coupon} off order {order_id}"],
        ["The code {coupon} takes {discount} percent off.", "{coupon} is applied: {discount} percent less."],
    )
    def apply_coupon(
        self, order_id: Order, coupon: Annotated[str, code("SAVE", 10, 99, "What is the code?", "")]
    ) -> dict[str, Any]:
        if self.chance(coupon) % 4 == 0:
            raise ToolError(f"the code {coupon} has expired")
        return {"discount": self.number(1, 5, coupon) * 5}

    @tool(
        "rate_product leave_review write_review", "(Rates|Reviews) a product.", "rate products",
        "product|item: what is rated; stars|rating|score: from 1 to 5; comment|text|review: (what to say|a text)",
        ["(rate|give) the {product} {stars} (stars|out of five)[ and write \"{comment}\"]", "(leave|write) a {stars} star review (for|of) the {product}[: {comment}]",
         "?the {product} (gets|deserves) {stars} stars (from me|)[, comment: {comment}]"],
        ["Thank you, the {product} has {stars} stars from you.", "I saved {stars} stars for the {product}."],
    )
    def rate_product(
        self, product: Product, stars: Annotated[int, whole(1, 5, "How many stars?")], comment: Note = ""
    ) -> dict[str, Any]:
        return {"status": "saved", "average": self.number(20, 50, product) / 10}


Claim = Annotated[str, code("C-", 1000, 9999, "What is the claim number?", "that claim")]
Policy = Annotated[str, code("P", 100000, 999999, "What is the policy number?", "")]
Cover = Annotated[str, enum("car home travel health bicycle", "Which kind of insurance?")]


@world
class Insurance(World):
    """Policies and claims."""

    name = "insurance"

    @tool(
        "file_claim report_damage open_claim", "(Files|Opens|Reports) a claim.", "file claims",
        "policy|policy_number: of the contract; day|date|incident_date: when it happened; amount|damage|loss: (estimated damage|how much is claimed), in euros",
        ["(file|open|report) a claim (on|for|under) policy {policy} (for|over) {amount}, it happened {day}",
         "?on {day} I had damage of {amount}, policy {policy}", "(report|register) damage of {amount} from {day} under {policy}"],
        ["The claim is filed under {claim_id}.", "I opened claim {claim_id} for you."], {"claim_id": Claim},
    )
    def file_claim(self, policy: Policy, day: Day, amount: Money) -> dict[str, Any]:
        self.known("policy", policy)
        number = self.new("C-")
        self.set("claim", number, to="new")
        return {"claim_id": number, "status": "new"}

    @tool(
        "claim_status check_claim", "(Shows|Tells) how far a claim is.", "check claims", "claim_id|claim|claim_number: its number",
        ["(check|look up) (claim |my claim ){claim_id}", "?how far is claim {claim_id}", "?(what's|what is) happening with {claim_id}", "?any news on claim {claim_id}"],
        ["Claim {claim_id} is {status}.", "The status of {claim_id}: {status}."],
    )
    def claim_status(self, claim_id: Claim) -> dict[str, Any]:
        self.known("claim", claim_id)
        return {"status": self.get("claim", claim_id, default=self.pick(("in review", "approved", "waiting for papers"), claim_id))}

    @tool(
        "withdraw_claim cancel_claim", "Withdraws a claim.", "withdraw claims", "claim_id|claim|claim_number: its number",
        ["(withdraw|cancel|take back) (the |)claim {claim_id}", "?I (want|wish) to (drop|withdraw) claim {claim_id}"],
        ["Claim {claim_id} is withdrawn.", "I withdrew {claim_id}."],
    )
    def withdraw_claim(self, claim_id: Claim) -> dict[str, Any]:
        self.known("claim", claim_id)
        self.set("claim", claim_id, to="withdrawn")
        return {"status": "withdrawn"}

    @tool(
        "insurance_quote get_quote calculate_premium", "(Calculates|Returns) the (yearly premium|price) of an insurance.", "quote a premium",
        "cover|type|insurance_type: (the kind of insurance|what is insured); deductible|excess|own_share: what (you pay yourself|is not covered), in euros",
        ["(quote|calculate|give me a price for) {cover} insurance[ with (a deductible|an excess) of {deductible}]",
         "?(what does|how much is) {cover} insurance[ with {deductible} deductible] (cost|) (per year|a year|)", "?I (need|want) a quote for {cover} insurance[, deductible {deductible}]"],
        ["The {cover} insurance costs {premium} euros a year.", "{premium} euros a year."],
    )
    def insurance_quote(self, cover: Cover, deductible: Money = 0) -> dict[str, Any]:
        return {"premium": max(40, self.number(90, 700, cover) - int(deductible) // 10)}

    @tool(
        "update_coverage change_cover adjust_sum_insured", "Changes the sum that a policy covers.", "change the sum insured",
        "policy|policy_number: which contract; amount|sum_insured|new_sum: the new sum, in euros",
        ["(change|set|raise|adjust) the (coverage|sum insured) of policy {policy} to {amount}", "?policy {policy} should cover {amount}", "insure {policy} for {amount}"],
        ["Policy {policy} covers {amount} euros now.", "The sum insured is {amount} euros."],
    )
    def update_coverage(self, policy: Policy, amount: Money) -> dict[str, Any]:
        self.known("policy", policy)
        return {"status": "updated", "sum": amount}

    @tool(
        "book_inspection schedule_assessor", "Makes an appointment with an (assessor|expert who looks at damage).", "book an assessor",
        "claim_id|claim: which claim; day|date: (of the visit|when); time|hour: (of the visit|at what time)",
        ["(book|send|schedule) an (assessor|inspection) for claim {claim_id} on {day} at {time}", "?can the assessor come {day} at {time} for {claim_id}"],
        ["The assessor comes on {day} at {time}.", "The appointment is on {day}, {time}."],
    )
    def book_inspection(self, claim_id: Claim, day: Day, time: Clock) -> dict[str, Any]:
        return {"day": day, "time": time, "assessor": self.pick(("Ms Hill", "Mr Dorn", "Ms Okoro"), claim_id)}

    @tool(
        "add_driver insure_driver", "Adds a (driver|person) to a car policy.", "add drivers to a policy",
        "policy|policy_number: which contract; driver|name|person: who (drives|is added); share|percentage: how much of the driving (is theirs|they do), in percent",
        ["add {driver} (to|as a driver on) policy {policy}[, driving {share} percent]", "?{driver} (will drive|drives) (my|the) car too, policy {policy}[, about {share}%]"],
        ["{driver} is a driver on policy {policy} now.", "Added {driver}; it costs {extra} euros more."],
    )
    def add_driver(self, policy: Policy, driver: Person, share: Percent = 50) -> dict[str, Any]:
        self.known("policy", policy)
        return {"status": "added", "extra": self.number(20, 150, driver)}
