"""Staff, customers, servers, calendar and mail."""

# fmt: off
# ruff: noqa: E501  (a line is a template)
from typing import Annotated, Any

from stille.train.toolcalls.kinds import (
    Clock,
    Count,
    Day,
    Email,
    FullName,
    Minutes,
    Money,
    Note,
    Percent,
    Person,
    Phone,
    Topic,
    code,
    enum,
    pool,
    whole,
)
from stille.train.toolcalls.tools import ToolError, World, tool, world

Employee = Annotated[str, code("E", 1000, 9999, "What is the employee number?", "that employee")]
Department = Annotated[str, enum("sales finance legal logistics research marketing support production", "Which department?")]
Leave = Annotated[str, enum("vacation sick unpaid parental study", "What kind of leave?")]


@world
class Hr(World):
    """Employees, leave, pay."""

    name = "hr"

    @tool(
        "find_employee search_employee employee_lookup", "(Finds|Looks up) an employee by name.", "look up employees", "name|full_name|person: first and last name",
        ["(find|look up|search for) (the employee|the colleague|staff member) {name}", "?what is the (staff|employee) number of {name}", "?is {name} (still |)with us", "get the staff record of {name}"],
        ["{name} has the number {employee} and works in {department}.", "That is {employee}, in {department}."], {"employee": Employee},
    )
    def find_employee(self, name: FullName) -> dict[str, Any]:
        self.known("employee", name, of=9)
        return {"employee": f"E{self.number(1000, 9999, name)}", "department": self.pick(("sales", "legal", "research"), name)}

    @tool(
        "request_leave book_absence apply_for_leave", "(Requests|Enters) leave for an employee.", "request leave",
        "employee|employee_id|staff_id: whose; kind|type|leave_type: of leave; start|from_date|first_day: first day; days|length|duration: how many days",
        ["(request|enter|book) {days} days of {kind} leave for {employee} from {start}", "?{employee} (takes|needs) {days} days {kind} leave, (starting|from) {start}", "(put|enter) {kind} leave for {employee}: {days} days from {start}"],
        ["{days} days of {kind} leave are entered for {employee}.", "Entered: {kind} leave, {days} days."],
    )
    def request_leave(self, employee: Employee, kind: Leave, start: Day, days: Count) -> dict[str, Any]:
        left = self.get("left", employee, default=self.number(4, 28, employee))
        if kind == "vacation" and days > left:
            raise ToolError(f"{employee} has only {left} days left")
        return {"status": "requested", "left": self.set("left", employee, to=left - (days if kind == "vacation" else 0))}

    @tool(
        "leave_balance remaining_vacation days_left", "(Tells|Returns) how many vacation days somebody has left.", "tell remaining vacation days", "employee|employee_id|staff_id: whose",
        ["(check|look up|tell me) the vacation days of {employee}", "?how (many vacation days|much holiday) does {employee} have (left|still)", "?how many days off are left for {employee}"],
        ["{employee} has {left} days left.", "{left} days are left."],
    )
    def leave_balance(self, employee: Employee) -> dict[str, Any]:
        self.known("employee", employee)
        return {"left": self.get("left", employee, default=self.number(4, 28, employee))}

    @tool(
        "change_salary set_pay adjust_salary", "Changes somebody's (monthly |)salary.", "change salaries", "employee|employee_id|staff_id: whose; amount|salary|new_pay: new monthly pay in euros; start|from_date|valid_from: from which day",
        ["(set|change|raise) the (salary|pay) of {employee} to {amount}[ from {start}]", "?{employee} (gets|earns|should get) {amount} a month[, from {start}](| now)"],
        ["{employee} earns {amount} euros now.", "The salary of {employee} is {amount} euros."],
    )
    def change_salary(self, employee: Employee, amount: Money, start: Day = "") -> dict[str, Any]:
        self.known("employee", employee)
        return {"status": "changed"}

    @tool(
        "move_employee transfer_employee change_department", "Moves somebody to another department.", "move employees to other departments", "employee|employee_id|staff_id: who; department|team|unit: where to",
        ["(move|transfer) {employee} to {department}", "?{employee} (works|starts) in {department} (from now on|now)", "(put|place) {employee} in the {department} department"],
        ["{employee} works in {department} now.", "Moved to {department}."],
    )
    def move_employee(self, employee: Employee, department: Department) -> dict[str, Any]:
        self.known("employee", employee)
        return {"status": "moved"}

    @tool(
        "add_employee hire_person create_employee", "Adds a new employee.", "add employees", "name|full_name|person: first and last name; department|team|unit: where; start|start_date|first_day: first day of work",
        ["(add|hire|enter) {name} in {department}, (starting|from) {start}", "?{name} (joins|starts in) {department} on {start}", "create {name} as a new employee, {department}, first day {start}"],
        ["{name} is added as {employee}.", "Welcome {name}, number {employee}."], {"employee": Employee},
    )
    def add_employee(self, name: FullName, department: Department, start: Day) -> dict[str, Any]:
        number = self.new("E")
        self.set("employee", number, to=name)
        return {"employee": number}

    @tool(
        "list_department team_members staff_list", "Lists who works in a department.", "list a department", "department|team|unit: which one",
        ["(list|show) (everybody|all people|who works) in {department}", "?who (works|is) in {department}", "(get|show) the {department} team"],
        ["In {department}: {people}.", "{people} work there."],
    )
    def list_department(self, department: Department) -> dict[str, Any]:
        return {"people": [self.pick(("Ada Roth", "Tim Bauer", "Mia Chen"), department, 1), self.pick(("Ole Lund", "Eva Diaz", "Jo Kim"), department, 2)]}

    @tool(
        "rate_employee performance_review enter_review", "Enters a performance review.", "enter reviews", "employee|employee_id|staff_id: of whom; score|rating|grade: from 1 to 5; comment|text|remark: in words",
        ["(enter|save) a review for {employee}: {score} (points|)[, {comment}]", "(give|rate) {employee} {score} out of five[ with the comment \"{comment}\"]"],
        ["The review of {employee} is saved.", "{employee} has {score} points."],
    )
    def rate_employee(self, employee: Employee, score: Annotated[int, whole(1, 5, "How many points?")], comment: Note = "") -> dict[str, Any]:
        return {"status": "saved"}


Customer = Annotated[str, code("CU-", 1000, 9999, "What is the customer number?", "that customer")]
Ticket = Annotated[str, code("TK-", 1000, 9999, "What is the ticket number?", "that ticket")]
Priority = Annotated[str, enum("low normal high urgent", "Which priority?")]
Stage = Annotated[str, enum("lead contacted offer won lost", "Which stage?")]


@world
class Crm(World):
    """Customers, tickets, deals."""

    name = "crm"

    @tool(
        "find_customer search_customer lookup_client", "(Finds|Looks up) a customer.", "look up customers", "name|full_name|person: first and last name",
        ["(find|look up|search for) (the customer|the client|our customer) {name}", "?what is the customer number of {name}", "?do we (know|have) {name}", "pull up the customer account of {name}"],
        ["{name} is customer {customer}.", "The customer number is {customer}."], {"customer": Customer},
    )
    def find_customer(self, name: FullName) -> dict[str, Any]:
        self.known("customer", name, of=9)
        return {"customer": f"CU-{self.number(1000, 9999, name)}"}

    @tool(
        "create_ticket open_ticket new_case", "(Opens|Creates) a support ticket.", "open tickets", "customer|customer_id|client: for whom; topic|subject|title: what it is about; priority|urgency|level: how (urgent|important)",
        ["(open|create) a[ {priority}] ticket for {customer} about {topic}", "?{customer} (complains|called|wrote) about {topic}[, {priority} priority]", "(log|file) {topic} as a ticket for {customer}[, (priority|urgency) {priority}]"],
        ["Ticket {ticket} is open.", "I opened {ticket} about {topic}."], {"ticket": Ticket},
    )
    def create_ticket(self, customer: Customer, topic: Topic, priority: Priority = "normal") -> dict[str, Any]:
        number = self.new("TK-")
        self.set("ticket", number, to="open")
        return {"ticket": number}

    @tool(
        "close_ticket resolve_ticket finish_case", "Closes a ticket.", "close tickets", "ticket|ticket_id|case_id: which one; note|comment|resolution: how it was solved",
        ["(close|resolve|finish) (ticket |){ticket}[ with the note \"{note}\"]", "?{ticket} is (done|solved)[: {note}]"],
        ["{ticket} is closed.", "I closed {ticket}."],
    )
    def close_ticket(self, ticket: Ticket, note: Note = "") -> dict[str, Any]:
        self.known("ticket", ticket)
        self.set("ticket", ticket, to="closed")
        return {"status": "closed"}

    @tool(
        "assign_ticket give_ticket route_case", "Gives a ticket to somebody.", "assign tickets", "ticket|ticket_id|case_id: which one; agent|person|assignee: who takes care",
        ["(assign|give|hand) {ticket} to {agent}", "?{agent} (takes|should take|looks after) {ticket}", "(let|have) {agent} handle {ticket}"],
        ["{agent} takes care of {ticket}.", "{ticket} is with {agent} now."],
    )
    def assign_ticket(self, ticket: Ticket, agent: Person) -> dict[str, Any]:
        self.known("ticket", ticket)
        return {"status": "assigned"}

    @tool(
        "update_contact change_phone set_customer_phone", "Changes the phone number of a customer.", "change a customer's phone number", "customer|customer_id|client: whose; phone|number|phone_number: the new one",
        ["(change|set|update) the phone (number |)of {customer} to {phone}", "?{customer} has a new number: {phone}", "save {phone} for {customer}"],
        ["The number of {customer} is {phone} now.", "Saved {phone}."],
    )
    def update_contact(self, customer: Customer, phone: Phone) -> dict[str, Any]:
        self.known("customer", customer)
        return {"status": "updated"}

    @tool(
        "set_deal_stage move_deal update_opportunity", "(Sets|Moves) the stage of a customer's deal.", "move deals", "customer|customer_id|client: whose deal; stage|status|phase: the new stage; value|amount|worth: in euros",
        ["(set|move) the deal (with|of) {customer} to {stage}[, (worth|value) {value}]", "?the deal with {customer} is {stage}[, worth {value}]", "mark {customer} as {stage}[ with a value of {value}]"],
        ["The deal with {customer} is {stage}.", "{customer}: {stage}."],
    )
    def set_deal_stage(self, customer: Customer, stage: Stage, value: Money = 0) -> dict[str, Any]:
        return {"status": "updated"}

    @tool(
        "log_call record_call note_phone_call", "Records a phone call with a customer.", "record calls", "customer|customer_id|client: with whom; minutes|duration|length: how long; topic|subject|about: what it was about",
        ["(log|record|note) a call with {customer}, {minutes} minutes[, about {topic}]", "?(I|we) talked to {customer} for {minutes} minutes[ about {topic}]"],
        ["The call with {customer} is recorded.", "Noted, {minutes} minutes."],
    )
    def log_call(self, customer: Customer, minutes: Minutes, topic: Topic = "") -> dict[str, Any]:
        return {"status": "recorded"}

    @tool(
        "give_discount set_discount grant_rebate", "Gives a customer a discount.", "give discounts", "customer|customer_id|client: who; percent|discount|rate: how much; until|valid_until|end_date: last day",
        ["(give|grant) {customer} {percent} percent (off|discount)[ until {until}]", "(set|put) the discount of {customer} (at|to) {percent}%[ until {until}]", "?{customer} (gets|should get) {percent}% off[, until {until}]"],
        ["{customer} gets {percent} percent off.", "The discount is set."],
    )
    def give_discount(self, customer: Customer, percent: Percent, until: Day = "") -> dict[str, Any]:
        if percent > 80:
            raise ToolError("more than 80 percent are not allowed")
        return {"status": "set"}


Host = Annotated[str, pool(tuple(f"{kind}-{number:02d}" for kind in ("web", "db", "cache", "mail", "build", "proxy", "auth", "search") for number in range(1, 9)), "Which server?")]
Service = Annotated[str, enum("nginx postgres redis kafka grafana worker scheduler gateway", "Which service?")]
Metric = Annotated[str, enum("cpu memory disk network latency", "Which metric?", {"cpu": "(CPU|cpu|processor load)", "network": "(network|network traffic)"})]
Alert = Annotated[str, code("AL", 1000, 9999, "Which alert?", "that alert")]
Channel = Annotated[str, enum("email sms chat pager", "By which channel?", {"email": "(email|e-mail|mail)", "sms": "(SMS|text message)"})]


@world
class Monitoring(World):
    """Servers, services, alerts."""

    name = "monitoring"

    @tool(
        "get_metric read_metric server_metric", "(Returns|Reads) a metric of a server.", "read metrics of servers", "host|server|machine: which one; metric|measure|what: what to read; minutes|window|last_minutes: over how many minutes",
        ["(check|show|read) the {metric} (of|on) {host}[ (over|for) the last {minutes} minutes]", "?(what's|how is) the {metric} on {host}[ in the last {minutes} minutes]", "?how much {metric} does {host} use[ ({minutes} minutes)]"],
        ["{metric} on {host} is at {value} percent.", "{host}: {value} percent {metric}."],
    )
    def get_metric(self, host: Host, metric: Metric, minutes: Minutes = 5) -> dict[str, Any]:
        self.known("host", host, of=9)
        return {"value": self.number(1, 99, host, metric)}

    @tool(
        "restart_service service_restart bounce_service", "Restarts a service on a server.", "restart services", "service|name|process: which service; host|server|machine: on which server",
        ["restart {service} on {host}", "?{service} (hangs|is stuck|does not answer) on {host}, restart it", "(bounce|kick) {service} on {host}"],
        ["{service} runs again on {host}.", "Restarted, it took {seconds} seconds."],
    )
    def restart_service(self, service: Service, host: Host) -> dict[str, Any]:
        if self.chance(service, host) % 7 == 0:
            raise ToolError(f"{service} is not installed on {host}")
        return {"status": "running", "seconds": self.number(1, 40, service, host)}

    @tool(
        "open_alerts list_alerts active_alarms", "Lists open alerts of a server.", "list alerts", "host|server|machine: which one; severity|level|priority: only of this level",
        ["(list|show|get)[ {severity}] alerts (of|on|for) {host}", "?(are there|any)[ {severity}] alerts on {host}", "?is something wrong with {host}[, only {severity}]"],
        ["The latest alert of {host} is {alert}: {text}.", "There is {alert} ({text})."], {"alert": Alert},
    )
    def open_alerts(self, host: Host, severity: Annotated[str, enum("info warning critical", "Which level?")] = "warning") -> dict[str, Any]:
        return {"alert": f"AL{self.number(1000, 9999, host)}", "text": self.pick(("disk almost full", "high load", "backup failed"), host)}

    @tool(
        "acknowledge_alert ack_alert confirm_alarm", "(Acknowledges|Confirms) an alert.", "acknowledge alerts", "alert|alert_id|alarm: which one; comment|note|message: for the colleagues",
        ["(acknowledge|ack|confirm) (alert |){alert}[ with the comment \"{comment}\"]", "?I (take|have) {alert}, (acknowledge|confirm) it[: {comment}]"],
        ["{alert} is acknowledged.", "I acknowledged {alert}."],
    )
    def acknowledge_alert(self, alert: Alert, comment: Note = "") -> dict[str, Any]:
        return {"status": "acknowledged"}

    @tool(
        "silence_host mute_alerts start_maintenance", "(Mutes|Silences) all alerts of a server for some time.", "mute alerts", "host|server|machine: which one; minutes|duration|for_minutes: how long",
        ["(silence|mute) {host} for {minutes} minutes", "?no alerts from {host} for {minutes} minutes", "put {host} into maintenance for {minutes} minutes"],
        ["{host} is silent for {minutes} minutes.", "Muted."],
    )
    def silence_host(self, host: Host, minutes: Minutes) -> dict[str, Any]:
        return {"status": "muted"}

    @tool(
        "create_alarm_rule add_threshold set_alert_rule", "Adds a rule that (warns|raises an alert) when a metric is too high.", "add alert rules",
        "host|server|machine: which one; metric|measure|what: what is watched; threshold|limit|above: in percent; channel|via|notify_by: how to tell",
        ["(alert|warn|tell) me[ by {channel}] when {metric} on {host} (goes|is) above {threshold} percent", "(add|create) an alert for {metric} on {host} at {threshold}%[ via {channel}]", "?if {metric} of {host} exceeds {threshold}% I want to know[ by {channel}]"],
        ["You will be told when {metric} on {host} is above {threshold} percent.", "The rule {rule} is active."],
    )
    def create_alarm_rule(self, host: Host, metric: Metric, threshold: Percent, channel: Channel = "email") -> dict[str, Any]:
        return {"rule": self.new("R")}

    @tool(
        "run_backup start_backup backup_now", "Starts a backup of a server.", "start backups", "host|server|machine: which one; kind|mode|type: of backup",
        ["(run|start|make) a[ {kind}] backup of {host}", "back up {host}[, {kind}]", "?{host} (needs|should have) a backup[, {kind}] (now|today|)"],
        ["The backup of {host} has started, {size} GB.", "Backup started."],
    )
    def run_backup(self, host: Host, kind: Annotated[str, enum("full incremental", "Full or incremental?")] = "incremental") -> dict[str, Any]:
        return {"size": self.number(2, 900, host)}

    @tool(
        "scale_service set_replicas resize_service", "Sets how many copies of a service run.", "scale services", "service|name|process: which service; replicas|count|instances: how many copies",
        ["(scale|set) {service} to {replicas} (replicas|copies|instances)", "?(run|I want) {replicas} (instances|copies) of {service}", "make it {replicas} {service} instances"],
        ["{service} has {replicas} copies now.", "Scaled."],
    )
    def scale_service(self, service: Service, replicas: Count) -> dict[str, Any]:
        return {"status": "scaled"}


Meeting = Annotated[str, code("MT", 1000, 9999, "Which meeting?", "that meeting")]


@world
class Desk(World):
    """Calendar, mail, tasks."""

    name = "desk"

    @tool(
        "create_event schedule_meeting add_appointment", "(Adds|Creates) an appointment in the calendar.", "make appointments",
        "title|subject|topic: what it is about; day|date: when; time|start|start_time: at what time; minutes|duration|length: how long; with_person|attendee|guest: who is invited",
        ["(schedule|set up|create) a meeting about {title} on {day} at {time}[ for {minutes} minutes][ with {with_person}]", "(put|add) {title} (in|to) my calendar, {day}, {time}[, {minutes} minutes][, with {with_person}]",
         "?(I|we) (talk|meet)[ with {with_person}] about {title} on {day} at {time}[ for {minutes} minutes]"],
        ["The meeting about {title} is in the calendar ({meeting}).", "Done: {day}, {time}, number {meeting}."], {"meeting": Meeting},
    )
    def create_event(self, title: Topic, day: Day, time: Clock, minutes: Minutes = 30, with_person: Person = "") -> dict[str, Any]:
        number = self.new("MT")
        self.set("meeting", number, to=day)
        return {"meeting": number}

    @tool(
        "cancel_event delete_meeting remove_appointment", "Cancels an appointment.", "cancel appointments", "meeting|event_id|appointment: which one",
        ["(cancel|delete|call off) (the meeting |meeting |){meeting}", "?{meeting} (does not take place|is off)", "remove {meeting} from my calendar"],
        ["{meeting} is cancelled.", "I removed {meeting}."],
    )
    def cancel_event(self, meeting: Meeting) -> dict[str, Any]:
        self.known("meeting", meeting)
        return {"status": "cancelled"}

    @tool(
        "move_event reschedule_meeting change_appointment", "Moves an appointment.", "move appointments", "meeting|event_id|appointment: which one; day|new_date|date: the new day; time|new_time|start: the new time",
        ["(move|shift|reschedule) {meeting} to {day}[ at {time}]", "?can we (do|have) {meeting} on {day}[ at {time}](| instead)", "(put|push) {meeting} to {day}[, {time}]"],
        ["{meeting} is on {day} now.", "Moved to {day}."],
    )
    def move_event(self, meeting: Meeting, day: Day, time: Clock = "") -> dict[str, Any]:
        self.known("meeting", meeting)
        return {"status": "moved"}

    @tool(
        "day_agenda list_events show_calendar", "Lists the appointments of a day.", "show your calendar", "day|date: which day",
        ["(show|list|tell me) my (appointments|calendar|agenda) (for|of|on) {day}", "?what (do I have|is on|is planned) (on |){day}", "?am I (free|busy) (on |){day}"],
        ["You have: {events}.", "On that day: {events}."],
    )
    def day_agenda(self, day: Day) -> dict[str, Any]:
        return {"events": [f"{self.number(8, 11, day)}:00 {self.pick(('team meeting', 'dentist', 'interview'), day)}", f"{self.number(13, 18, day)}:30 {self.pick(('call', 'review', 'gym'), day, 2)}"]}

    @tool(
        "send_email write_mail mail_to", "(Sends|Writes) an e-mail.", "send e-mail", "to|recipient|address: e-mail address; subject|topic|title: what it is about; body|text|message: what it says",
        ["(send|write) an (e-mail|email) to {to} about {subject}[ saying \"{body}\"]", "(mail|email) {to}, subject {subject}[, text: {body}]", "?{to} should (get|have) a mail about {subject}[: {body}]"],
        ["The mail to {to} is sent.", "I wrote to {to}."],
    )
    def send_email(self, to: Email, subject: Topic, body: Note = "") -> dict[str, Any]:
        return {"status": "sent"}

    @tool(
        "send_message text_person send_text", "Sends a (short |chat |)message to somebody.", "send messages", "person|to|recipient: who gets it; text|message|content: what it says",
        ["tell {person}: {text}", "(send|write) {person} a message(: | saying ){text}", "(text|message) {person} \"{text}\"", "?{person} should know: {text}"],
        ["I wrote to {person}.", "{person} has the message."],
    )
    def send_message(self, person: Person, text: Note) -> dict[str, Any]:
        return {"status": "sent"}

    @tool(
        "add_task create_todo new_task", "Adds a task to the list.", "add tasks", "text|task|title: what is to be done; due|deadline|day: until when; priority|importance|urgency: how important",
        ["(add|write down) the[ {priority}] task \"{text}\"[, due {due}]", "(put|note) \"{text}\" on my (to-do list|task list)[ (for|until) {due}][, priority {priority}]", "?I must not forget: {text}[, until {due}][ ({priority})]"],
        ["The task is on your list.", "Noted: {text}."],
    )
    def add_task(self, text: Note, due: Day = "", priority: Priority = "normal") -> dict[str, Any]:
        return {"task": self.new("#")}

    @tool(
        "set_reminder remind_me create_reminder", "Reminds the user of something at a time.", "remind you of things", "text|what|message: of what; time|at|when: at what time; day|date: on which day",
        ["remind me(: | of this: ){text}, at {time}[ on {day}]", "(set|make) a reminder[ on {day}] at {time}: {text}", "?at {time}[ on {day}] I (want|have) to be reminded: {text}"],
        ["I will remind you at {time}.", "The reminder is set."],
    )
    def set_reminder(self, text: Note, time: Clock, day: Day = "") -> dict[str, Any]:
        return {"status": "set"}
