"""How people ask for the twelve tools.

A template is what follows "please", or with "?" before it a whole sentence; (a|b) is a choice, [what {x}] is there if x
is said, <is|are> goes by whether several things are meant. {who} {whom} {whose} is a person as subject, object and
possessor, {on} a day with its preposition, {date} without, {at} and {time} likewise, {when} both day and time, {new} both
after "to", {event} {invoice} {ticket} {file} a thing in any words, {id} only its id. What is no argument of a call is beside
it sometimes: {payer} of an invoice, when an event {was}, who had the ticket {former}ly, a person's {firm}.
"""

# ruff: noqa: E501  (a line is a template)

import re
from functools import cache

from stille.train.toolcalls.dice import Dice, fill, omissible, slots

ASKS: dict[str, dict[str, tuple[str, ...]]] = {
    "find_contact": {"": (
        "look up {whom}", "look up {whose} (address|e-mail address|contact|contact details)", "find {whose} e-mail( address|)", "find {whom} in the (contacts|address book)",
        "give me {whose} (e-mail address|e-mail|mail address|contact data)", "get me the (address|contact details|e-mail address) of {whom}", "?what is {whose} (e-mail address|e-mail|email|mail address)",
        "?what's {whose} (mail|email address|address)", "?(which|what) company does {who} work for", "?where does {who} work", "?which firm is {who} from", "?how (can|do) I reach {whom} by (mail|e-mail)",
        "?what is the (email|e-mail address|mail address) of {whom}", "?do (we|you) have {whose} (address|e-mail|contact details)", "?do we have (an address|an e-mail address|contact details) for {whom}", "?who does {who} work for",
        "?I (need|want) to write to {whom}, what's the address", "?I need {whose} (e-mail address|contact data|address)", "tell me where {who} works", "tell me {whose} (address|e-mail address|company)", "search the contacts for {whom}",
        "?is there (an e-mail|an address|anything) for {whom} in the (contacts|address book)", "check {whose} contact entry", "show me the contact of {whom}", "show {whose} contact details", "?which company is {who} with",
        "?I can't remember which company {who} belongs to", "?I want to send {whom} an e-mail. Where to", "?under which address can I (write to|mail) {whom}", "look in the address book for {whom}", "?I have lost {whose} e-mail address",
        "?whom does {who} work for, and what is the e-mail address", "pull up {whom} in the contacts", "fetch {whose} mail address", "?contact details for {whom}", "look up {whom} (from|of|at) {firm}", "?what's the e-mail address of {whom} at {firm}", "find {whom} of {firm} in the contacts", "?e-mail of {whom}", "?{whose} address",
        "?I have to (drop|send) {whom} a line, which address do I use", "?remind me which company {who} is with", "?who is {who} again, and from which company", "dig out {whose} e-mail", "?we must have {whose} e-mail address somewhere", "?could I have {whose} e-mail address", "?what have we got on {whom} in the contacts",
        "get {whose} details (up|out of the address book)", "?I'd need {whose} e-mail, if we have it", "?{whose} contact data, please", "?what address do we have on file for {whom}", "?I'm trying to reach {whom} in writing, what's the e-mail", "see what the address book says about {whom}",
        "?no idea where {who} works, (look it up|can you check)", "?I don't have an e-mail address for {whom}, do you", "?where can I write to {whom}", "?{who} works where, exactly", "?would you happen to know {whose} e-mail address", "fish out {whose} address from the contacts", "?email for {whom}",
        "?contact details {whom} pls", "?addr(ess|) of {whom}?", "?would you be so good as to let me know {whose} e-mail address", "?sorry to bother you with this, but where does {who} work",
    )},
    "list_events": {"": (
        "list the (events|meetings|appointments) {on}", "list all events {on}", "show (me |)(my|our|the) calendar for {date}", "show me (everything|what we have) {on}", "?what's on {date}", "?what is (planned|scheduled|in the calendar) {on}",
        "?what do (we|I) have {on}", "?what does {date} look like", "?what (meetings|appointments|events) are there {on}", "?which (meetings|events|appointments) do (we|I) have {on}", "?do (we|I) have (anything|something|any meetings) {on}",
        "?is (anything|something) (planned|happening|in the calendar) {on}", "?am I (free|busy) {on}", "?are we (free|busy) {on}", "read me the (calendar|agenda|schedule) for {date}", "give me the (agenda|schedule|appointments) for {date}",
        "tell me what (happens|is planned|we do) {on}", "check the calendar for {date}", "?how (full|busy) is {date}", "?how does (my|our|the) calendar look {on}", "?any (meetings|appointments|events) {on}", "?anything {on}", "?calendar for {date}", "?agenda for {date}",
        "open the calendar {on}", "go through the (appointments|events) {on} with me", "?I'd like to see the (plan|events|schedule) for {date}", "?I want to know what (happens|we have) {on}", "?what's (up|waiting for us) {on}", "?is there something I should know about {date}", "?are there any (visits|events|appointments) {on}",
        "look up which (meetings|events) we have {on}", "bring up the events of {date}", "?what have we got {on}", "pull up the schedule {on}",
        "?what have I got to do {on}", "?how are we fixed for {date}", "?give me a rundown of {date}", "run me through (what's on|the appointments) {on}", "?is {date} (still |)free", "?have (I|we) got anything lined up {on}", "?who are we meeting {on}", "?do (I|we) have to be anywhere {on}",
        "?what's the programme for {date}", "?before I promise anything: what do we have {on}", "?I'm planning my week, what's in the calendar {on}", "let me know what's scheduled {on}", "?is the calendar empty {on}", "?could I take {date} off, or is there something in the calendar", "?what's coming up {on}",
        "?what's on the agenda {on}", "?I was asked if we have time {on}, what does the calendar say", "see (if|whether) there is anything {on}", "?schedule {on}", "?what lies ahead {on}", "?would you tell me what's in the diary {on}", "find out what we are doing {on}",
        "?{date}: anything on", "?cal {date}?", "?I don't want to be a nuisance, but could you tell me what we have {on}", "?if it isn't too much trouble, please let me know what is planned {on}",
    )},
    "create_event": {"": (
        "put {a_title} in the calendar[ with {people}] {when}[ for {minutes}]", "put {a_title} (into the calendar|on the calendar) {when}[, {minutes}][ with {people}]", "schedule {a_title}[ with {people}] {when}[ for {minutes}]", "schedule {a_title} for {new}[ with {people}][, {minutes}]",
        "add {a_title}[ with {people}] {when}[, {minutes}]", "create an event (called|named|with the title) {title}[ with {people}] {when}[, {minutes} long]", "create {a_title} for {new}[ lasting {minutes}][ and invite {people}]",
        "set up {a_title}[ with {people}] {when}[ for {minutes}]", "plan {a_title}[ with {people}] {when}[ lasting {minutes}]", "plan {minutes} for {a_title}[ with {people}] {when}", "book {a_title}[ with {people}] {when}[ for {minutes}]", "book {minutes} {on} {at} for {a_title}[ with {people}]",
        "arrange {a_title} {when}[, (it takes|takes) {minutes}][, (invite|with|together with) {people}]", "enter {a_title} {when}[, {minutes}][, (attendees|participants|guests): {people}]", "make an event (called|named) {title} {when}[ with {people}][, {minutes}]",
        "?we have {a_title}[ with {people}] {when}[, {minutes} long], (put it in|please note it|note it down|add it to the calendar)", "?there (is|will be) {a_title}[ with {people}] {when}[ for {minutes}], please (enter it|put it in the calendar|add it)",
        "?{people} and I (have|need) {a_title} {when}[ for {minutes}], please schedule it", "?new (event|appointment|meeting): {title}, {when}[, {minutes}][, with {people}]", "?calendar: {title}, {on}, {time}[, {minutes}][, {people}]", "?{title} {when}[, {minutes}][ with {people}], into the calendar please",
        "invite {people} to {a_title} {when}[ for {minutes}]", "invite {people} to {a_title} {on}, it starts at {time}[ and takes {minutes}]", "?I need {a_title} in the calendar: {when}[, {minutes}][, with {people}]", "?(could|can) we have {a_title}[ with {people}] {when}[ for {minutes}]? Put it in",
        "reserve {minutes} for {a_title} {when}[ with {people}]", "block {minutes} {when} for {a_title}[ with {people}]", "block {new} for {a_title}[, {minutes}][, with {people}]", "add an (event|appointment) {on}: {title}, {at}[, {minutes}][, with {people}]", "get {people} together for {a_title} {when}[ for {minutes}]",
        "?{on} {at} there is {a_title}[ with {people}][ for {minutes}]; (note|enter) that", "?title {title}, {date}, {time}[, {minutes}][, {people}]: make an event of it", "note {a_title} {when}[, {minutes}][, {people} (will come|will be there)]", "?let's have {a_title}[ with {people}] {when}[ for {minutes}]",
        "make room for {a_title} {on}, (starting|beginning) at {time}[, for {minutes}][, with {people}]", "?I want to (hold|have|do) {a_title}[ with {people}] {when}[ for {minutes}], add it",
        "pencil in {a_title}[ with {people}] {when}[ for {minutes}]", "get {a_title} on the books {when}[, {minutes}][, with {people}]", "slot in {a_title} {when}[ with {people}][ ({minutes})]", "?we agreed on {a_title}[ with {people}] {when}[, {minutes}], so put it down",
        "?{people} and I are having {a_title} {when}[, {minutes}]; put that in the calendar", "?{people} can do {new}, so set up {a_title}[ for {minutes}]", "?{a_title} {when}[ with {people}][, {minutes}]. Please add that", "?(mark|save) the date: {title}, {when}[, {minutes}][, with {people}]",
        "?I've promised {people} {a_title} {when}[, {minutes}], so put it in the calendar", "?I said yes to {a_title}[ with {people}] {when}[, {minutes}]; (add|enter) it", "?there's going to be {a_title} {when}[, {minutes}][ with {people}], would you put that down",
        "?{title}, {time}, {on}[, {minutes}][, with {people}]. Calendar, please", "?appt {when}: {title}[, {minutes}][, {people}]", "?add to calendar: {title}, {date}, {time}[, {minutes}][, {people}]", "keep {new} free for {a_title}[ with {people}][, {minutes}]", "hold {new} for {a_title}[ with {people}][, {minutes}]",
        "fix {a_title}[ with {people}] for {new}[, {minutes}]", "?{people} will come by {when} for {a_title}[, {minutes}]; make an entry", "?{people} suggested {new} for {a_title}[, {minutes}], that suits me, so book it", "?how about {a_title}[ with {people}] {when}[ for {minutes}]? Please schedule it",
        "?we should sit down with {people} {when} for {a_title}[, {minutes}], put it in", "?we'd like to do {a_title}[ with {people}] {when}[, about {minutes}], could you arrange that", "send {people} an invitation to {a_title} {when}[, {minutes}]", "ask {people} to {a_title} {when}[, {minutes}]",
        "?{date} {at}: {title}[, {minutes}][, with {people}]", "?I'd appreciate it if you put {a_title} in the diary {when}[, for {minutes}][, with {people}]", "?please make sure {a_title}[ with {people}] is in the calendar {when}[, {minutes}]",
        "?{title} {when}[ {minutes}][ with {people}]", "?cal: {title} {when}[, {minutes}][, {people}]", "?if it isn't too much trouble, I'd like {a_title} in the calendar {when}[, with {people}][, for {minutes}]", "?I was hoping you could find a place in the calendar for {a_title}[ with {people}]: {when}[, {minutes}]",
        "?sorry for the short notice, but we have {a_title}[ with {people}] {when}[, {minutes}], so please put it in",
    )},
    "move_event": {"": (
        "move {event} to {new}", "move {event} to {new}", "reschedule {event} (to|for) {new}", "shift {event} to {new}", "put {event} {when} instead", "postpone {event} to {new}", "push {event} to {new}", "change {event} to {new}", "move {event}: {date}, {time}",
        "?{event} <is|are> now {when}", "?{event} <takes|take> place {when} instead", "?{event} <has|have> to (be|happen) {when}, please move <it|them>", "?{event} <has|have> been moved to {new}", "?{event} <has|have> been (rescheduled|shifted) to {new}", "?{event} will (be|start|begin) {when} now", "?(can|could) {event} be {when} instead",
        "?(can|could) we (have|do|hold) {event} {when} instead", "?we can't (do|make) {event} as planned, (move|shift) <it|them> to {new}", "set {event} to {new}", "?new (date|time|slot) for {event}: {new}", "?{event}: (new time|now|please move to|moved to) {new}", "?let's (have|do|move) {event} {when} (instead|after all)", "bring {event} to {new}",
        "take {event} and move <it|them> to {new}", "?I'd rather have {event} {when}", "?{event} should (be|start|take place) {when}, not when <it is|they are> now", "carry {event} over to {new}", "?{event} won't work as planned; {new} would, so move <it|them>", "?everybody prefers {new} for {event}, so move <it|them>",
        "change the (date|time|slot) of {event} to {new}", "?please have {event} start {when}", "?{new} suits everybody better for {event}, move <it|them> (please|there)", "?the new (slot|date) of {event} is {new}", "?{event} <is|are> (delayed|postponed|brought forward) to {new}", "move {event} from {was} to {new}", "shift {event} from {was} to {new}", "?instead of {was}, {event} <is|are> {when}", "?{event} <is|are> not {was} but {when}", "reschedule {event} from {was} to {new}", "?{was} does not suit us for {event}, make it {new}",
        "?{someone} can't make {event} (then|at that time), so (move|shift) <it|them> to {new}", "?{someone} asked (whether|if) we could have {event} {when} instead, please change <it|them>", "?{someone} would rather have {event} {when}, so change <it|them>", "?{someone} is tied up then, so {event} <has|have> to go to {new}",
        "?{was} is no good for {event}, so we need {new} instead", "?something came up, so {event} <has|have> to move to {new}", "?turns out {was} doesn't work for {event}. {new} does", "?we agreed on {new} for {event}, please change <it|them>", "?we've decided to have {event} {when}",
        "?we settled on a new date for {event}: {new}", "?(I'm|we're) double-booked, so please put {event} {when} instead", "?I won't be back in time for {event}, so make <it|them> {new}", "swap {event} over to {new}", "rebook {event} for {new}", "rearrange {event} for {new}",
        "?would it be possible to have {event} {when} instead", "?is there any way {event} could be {when} instead", "?{new} for {event}, please, instead of {was}", "?the {what} ({id}) is {when} now", "?the {what} has moved, {id} is now {when}", "?{event} <takes|take> place at another time: {when}",
        "?from what I hear, {event} <has|have> been moved to {new}, so update <it|them>", "?could you see to it that {event} <is|are> moved to {new}", "make {event} {new} instead of {was}", "?change of plan: {event} <is|are> {when}", "get {event} moved to {new}",
        "?{event} to {new} pls", "?{event} now {when}", "?I know it's short notice, but could you please move {event} to {new}", "?I hate to do this, but {event} <has|have> to be {when} instead", "?if nobody minds, I'd like to have {event} {when} instead",
    )},
    "cancel_event": {"": (
        "cancel {event}", "cancel {event}", "call off {event}", "delete {event} from the calendar", "remove {event} from the calendar", "take {event} (out of|off|out from) the calendar", "drop {event}", "scrap {event}", "strike {event} (from|off) the calendar", "get rid of {event}",
        "?{event} <is|are> (off|cancelled|called off)", "?{event} (won't|will not) (happen|take place)", "?{event} (doesn't|does not) take place", "?{event} <has|have> been (cancelled|called off), (please update the calendar|take <it|them> out)", "?we (don't|do not|no longer) need {event} any more", "?nobody (can|wants to) come to {event}, cancel <it|them>",
        "?we are not going to (have|do|hold) {event}, remove <it|them>", "?they (called off|cancelled) {event}", "?the customer has called off {event}", "?(can|could) {event} be cancelled", "?we won't (have|hold) {event} after all", "?{event} can go", "?{event} <is|are> no longer needed",
        "erase {event}", "?forget about {event}, take <it|them> off the calendar", "?nothing will come of {event}", "?let's (skip|drop|cancel) {event}", "?no need for {event} any more, cancel <it|them>", "?everyone is ill, so cancel {event}", "?{event} fell through, so (delete|remove) <it|them>",
        "cross {event} off the calendar", "clear {event} from the calendar", "?I have to cancel {event}", "?unfortunately {event} <is|are> off",
        "?{someone} (has called in sick|can't come), so cancel {event}", "?{someone} pulled out, so {event} <is|are> off", "?{someone} rang to call off {event}", "?we've decided against {event}, so take <it|them> off the calendar", "?I won't be needing {event} after all", "?{event} <isn't|aren't> going ahead",
        "?{event} <isn't|aren't> (happening|going to happen)", "?{event} <has|have> become unnecessary, (delete|cancel) <it|them>", "bin {event}", "wipe {event} from the calendar", "?you can delete {event}", "?you can take {event} off the calendar, nobody is coming", "?we sorted everything out by phone, so {event} can go",
        "?{event}: cancelled", "?no {what} after all, cancel {id}", "?the {what} isn't happening, so cancel {id}", "?don't keep {event} in the calendar, <it is|they are> off", "axe {event}", "?I'm afraid we have to call {event} off", "?please see that {event} <disappears|disappear> from the calendar",
        "?they no longer want {event}, so (remove|cancel) <it|them>", "?would you mind cancelling {event}", "?as it turns out, we can do without {event}; please cancel <it|them>", "?{event} <was|were> called off this morning, update the calendar",
        "?{event} off, pls cancel", "?I'm sorry to say that {event} <is|are> not going to happen, so kindly cancel <it|them>", "?it would be very kind of you to cancel {event}",
    )},
    "list_invoices": {
        "": (
            "list the[ {status}] invoices[ (of|for|to) {customer}]", "show me all[ {status}] invoices[ (of|for) {customer}]", "show (me |)the[ {status}] (invoices|bills)[ for {customer}]", "list all[ {status}] invoices[ to {customer}]", "give me the[ {status}] invoices[ of {customer}]",
            "give me a list of (the|all)[ {status}] invoices[ to {customer}]", "get me the[ {status}] (bills|invoices)[ for {customer}]", "?which[ {status}] invoices (are there|do we have)[ for {customer}]", "?what[ {status}] invoices (are there|do we have)[ for {customer}]", "?are there any[ {status}] invoices[ for {customer}]", "?are there[ {status}] invoices[ for {customer}]",
            "look up the[ {status}] invoices[ of {customer}]", "check the[ {status}] invoices[ for {customer}]", "?I (need|want) (an overview|a list) of the[ {status}] invoices[ of {customer}]", "pull up the[ {status}] invoices[ for {customer}]", "?I'd like to see the[ {status}] invoices[ of {customer}]", "find the[ {status}] invoices[ of {customer}]",
            "go through the[ {status}] invoices[ for {customer}] with me", "read me the[ {status}] invoices[ of {customer}]", "bring up all[ {status}] bills[ of {customer}]", "?let me see the[ {status}] invoices[ for {customer}]", "fetch the[ {status}] invoices[ to {customer}]",
            "?I need to see the[ {status}] invoices[ for {customer}]", "?can I see the[ {status}] invoices[ for {customer}]", "run me through the[ {status}] invoices[ of {customer}]", "?what do the[ {status}] invoices[ for {customer}] look like",
            "?the bookkeeper wants to see the[ {status}] invoices[ of {customer}]", "?the accountant is asking for all[ {status}] invoices[ to {customer}]", "?all[ {status}] invoices[ for {customer}], please",
            "?if it isn't too much trouble, I'd be grateful for a list of the[ {status}] invoices[ for {customer}]", "?all[ {status}] invoices[ {customer}] pls", "?I was hoping you could show me the[ {status}] invoices[ for {customer}]",
        ),
        "customer": (
            "?what have we (invoiced|billed) {customer} (so far|for)", "?what invoices did {customer} get", "?which invoices went to {customer}", "?have we (ever |)(invoiced|billed) {customer}", "?is there an invoice for {customer}", "show me what we (billed|invoiced) {customer}", "show the invoices we wrote for {customer}", "?invoices {customer}",
            "?how many invoices (does|did) {customer} (have|get)", "?what about invoices for {customer}", "list everything we invoiced {customer}, paid or not",
            "?where do we stand with {customer}, invoice-wise", "?what did we ever charge {customer} for", "?has anything been billed to {customer}", "?what bills have gone out to {customer}", "pull everything we've billed to {customer}", "?which invoices do we have on {customer}", "?what's on the books for {customer}",
            "?I'm on the phone with {customer}, what invoices do they have",
        ),
        "status=open": (
            "?(who|which customers) (still owes|still owe|owes) us money", "?who has not paid (yet|so far)", "?what is still (unpaid|to be paid|outstanding)", "?which (invoices|bills) (are still|are) (unpaid|outstanding|open|to be paid)", "list everything that is (still |)(unpaid|outstanding)", "?what money are we (still |)waiting for",
            "?which invoices have not been (paid|settled)", "?how much is still outstanding", "?do we have unpaid (bills|invoices)", "?is anything still unpaid", "show what has not been paid yet",
            "?who hasn't (paid|settled up) yet", "?who is still in debt with us", "?what's (still |)outstanding", "?how much money is still out there, invoice by invoice", "?what are people still owing us", "?whom do we have to chase for money", "?what are we still owed", "?which bills haven't been settled",
            "run through what customers still have to pay us", "?I want to know who still has to pay",
            "?unpaid ones, all customers",
        ),
        "status=paid": (
            "?which (invoices|bills) (have been|are|were) (paid|settled)", "?what has been paid (already|so far)", "?who has (already |)paid", "show me what has been (paid|settled)", "list what is (paid|settled) already", "?which customers have paid", "?which invoices are (done|settled)", "?is anything paid already",
            "?what money has come in for our invoices", "?who has settled their bills", "?which bills are off the table because they are paid", "go through the invoices that have been paid", "?which invoices did people pay", "see what's been paid so far",
        ),
        "customer status=open": (
            "?what does {customer} (still |)owe us", "?does {customer} (still |)owe us (anything|something|money)", "?has {customer} got anything unpaid", "?which invoices has {customer} not paid (yet|)", "?what is {customer} still to pay", "?how much is {customer} behind", "show me what {customer} has not paid", "?is (anything|something) of {customer} still (open|unpaid|outstanding)",
            "?what is still outstanding from {customer}", "?are we waiting for money from {customer}", "?is {customer} behind with payments", "list what {customer} still has to pay",
            "?how much does {customer} still owe", "?what are we still owed by {customer}", "?does {customer} have any debts with us", "?is there anything {customer} hasn't paid (yet|)", "?anything (open|outstanding) with {customer}", "?what has {customer} yet to pay",
            "?I need to chase {customer} for money, what is still open", "?has {customer} settled everything, or is something still open", "find out what {customer} hasn't settled",
            "?{customer}, anything unpaid?",
        ),
        "customer status=paid": (
            "?what has {customer} (already |)paid", "?which invoices has {customer} (already |)(paid|settled)", "?has {customer} (already |)paid anything", "show me what {customer} has settled", "list what {customer} paid", "?which of the invoices to {customer} are (settled|paid)",
            "?what have we been paid by {customer}", "?what bills has {customer} settled so far", "?which of our invoices has {customer} paid already", "?what money came in from {customer}, which invoices were those", "see which invoices {customer} has paid",
            "?{customer} says they paid some invoices; which ones are settled",
        ),
    },
    "create_invoice": {"": (
        "invoice {customer} for {amount}, due {date}", "invoice {customer} {amount}, due {by}", "write an invoice (to|for) {customer} over {amount}, due {by}", "write {customer} an invoice (for|over) {amount}, (due|payable) {by}", "create an invoice for {customer}: {amount}, due {date}", "create an invoice of {amount} for {customer}, due {on}",
        "bill {customer} {amount}, payable by {date}", "bill {customer} for {amount}, due {date}", "make (out |)an invoice over {amount} (to|for) {customer}, due {by}", "send {customer} (a bill|an invoice) for {amount}, due {on}", "charge {customer} {amount}, due {by}", "?{customer} (has to|must|should) pay {amount} by {date}, (write|make) the invoice",
        "?{customer} owes us {amount}, due {date}: write an invoice", "?new invoice: {customer}, {amount}, due {date}", "?invoice for {customer}, {amount}, {date}", "?we need an invoice to {customer} over {amount}, due {by}", "?{customer} gets an invoice over {amount}, payable by {date}", "issue an invoice to {customer} for {amount} with due date {date}",
        "issue {customer} an invoice: {amount} by {date}", "prepare an invoice for {customer}, amount {amount}, due {date}", "?the job for {customer} is done: {amount}, due {date}. (Write|Make) the invoice", "draw up a bill over {amount} for {customer}, due {on}", "?we delivered to {customer} for {amount}; invoice that, due {by}", "?an invoice over {amount} for {customer} is needed, they pay by {date}",
        "?due {date}: invoice {customer} for {amount}", "?amount {amount}, customer {customer}, due {date}; (write|create) the invoice", "?let's bill {customer} {amount} and give them until {date}", "invoice {amount} to {customer}, to be paid by {date}", "?please have {customer} pay {amount} until {date}, by invoice", "write a new invoice: customer {customer}, {amount}, to be paid {by}",
        "?(can|could) {customer} get an invoice over {amount}, due {by}", "put {amount} on an invoice for {customer}, due {by}", "?{customer} agreed to pay {amount} by {date}, so write the invoice", "?{contact} (of|from) {customer} ordered for {amount}, write the invoice, due {by}", "?{contact} wants the bill for {customer}: {amount}, due {date}", "?we repaired something for {customer}. Invoice it: {amount}, due {date}",
        "?invoice {customer} {amount} due {date}", "?{customer}, {amount}, due {date}, new invoice", "?{amount} to {customer}, due {date}. Invoice please", "?we're done at {customer}, so bill them {amount}, due {by}", "?the work for {customer} came to {amount}, so please invoice that, due {by}",
        "?{customer} bought from us for {amount}; the invoice is due {by}, please write it", "?it's time to bill {customer}: {amount}, payable by {date}", "raise an invoice to {customer} for {amount}, due {by}", "raise an invoice for {amount} against {customer}, payable by {date}",
        "get an invoice out to {customer}: {amount}, due {date}", "?{customer} is to be charged {amount}, due {by}", "?{customer} should be billed {amount}, payable by {date}", "?I told {customer} it would be {amount} and they can pay until {date}; make the invoice",
        "?we settled on {amount} with {customer}, to be paid by {date}. Write that up as an invoice", "?would you write up an invoice for {customer}? {amount}, due {date}", "?{customer} wants an invoice: {amount}, due {by}", "?{customer} expects a bill over {amount}, due {by}, please make one",
        "?please charge {amount} to {customer} and set the due date to {date}", "set up an invoice for {customer} with {amount}, payment due {by}", "?payment due {date}, {amount}, for {customer}: make that an invoice", "?bill to {customer}, {amount}, payable by {date}",
        "have an invoice over {amount} go out to {customer}, due {by}", "?{contact} from {customer} asked for the invoice: {amount}, due {by}",
        "?inv {customer} {amount} due {date}", "?{customer} {amount} due {date}, invoice pls", "?now that the work for {customer} is done, would you kindly write the invoice: {amount}, due {by}", "?we still have to send {customer} their invoice; it should be over {amount} and due {by}",
    )},
    "mark_invoice_paid": {"": (
        "mark {invoice} as (paid|settled)", "mark {invoice} paid", "set {invoice} to paid", "note that {invoice} <was|were> paid", "note {invoice} as (paid|settled)", "record that {invoice} <has|have> been paid", "record the payment of {invoice}", "book the payment for {invoice}", "tick off {invoice} as paid", "put {invoice} down as paid", "register {invoice} as paid",
        "?{invoice} <is|are> paid", "?{invoice} <is|are> (paid now|settled|settled now)", "?{invoice} <was|were> paid (today|yesterday|this morning|)", "?{invoice} <has|have> been (paid|settled)", "?the money for {invoice} (has arrived|came in|is here|is in our account)", "?we (got|received) the money for {invoice}", "?they paid {invoice}", "?they have (finally |)(paid|settled) {invoice}", "?the (bank|bookkeeper) says {invoice} <is|are> paid",
        "?{invoice} can be marked as paid", "?the payment for {invoice} (arrived|came in) (today|this morning|yesterday|)", "?(can|could) {invoice} be marked as paid", "change {invoice} to paid", "?{invoice} <is|are> no longer open, the money is here", "?somebody paid {invoice} in cash", "?good news: {invoice} <is|are> paid", "?payment received for {invoice}", "close {invoice} as paid",
        "?{invoice}: paid", "?the customer transferred the money for {invoice}", "?I see the money for {invoice} on the account", "?we can count {invoice} as settled", "?{invoice} <needs|need> to be marked as paid", "?{payer} (has paid|has settled|paid) {id}", "?{payer} has transferred the money for {id}", "?{payer} paid {id} (today|yesterday|this morning|in cash)", "mark {id} of {payer} as (paid|settled)", "?the money (from|of) {payer} for {id} (has arrived|is here|came in)", "?{id}, {payer}: paid",
        "?they have paid us for {invoice}", "?{invoice} came through, mark <it|them> as paid", "?the transfer for {invoice} (is in|went through|has come through)", "?{invoice} <is|are> off the list, (they|the customer) paid", "?that's {invoice} paid", "?consider {invoice} paid", "?our account shows the payment for {invoice}",
        "?{payer} settled up for {id}", "?{payer} just transferred what they owed for {id}", "?{payer} came by and paid {id}", "?according to the bank, {invoice} <is|are> paid", "?according to the bank, {payer} paid {id}", "?I've just seen that {invoice} <has|have> been paid", "?just got word that {invoice} <was|were> paid",
        "?it took them long enough, but {invoice} <is|are> paid", "?no need to chase {invoice} any longer, the money is here", "?{invoice} <doesn't|don't> have to be chased any more, <it has|they have> been paid", "enter the payment for {invoice}", "flag {invoice} as paid", "log {invoice} as paid", "update {invoice} to paid",
        "?the cheque for {invoice} arrived, so mark <it|them> as paid", "?would you mark {invoice} as paid, the money arrived", "?I can see the payment of {payer} for {id}", "?{what} came in from {payer}, that's {id}", "?got the {what} for {id}",
        "?{invoice} paid", "?{invoice} paid, pls note", "?as far as I can see, {invoice} <has|have> been paid, so would you kindly note that", "?it would be very kind of you to mark {invoice} as paid",
    )},
    "create_ticket": {"": (
        "open a[ {priority}-priority] ticket[ for {whom}]: {title}", "open a ticket: {title}[, {priority} priority][, for {whom}]", "create a ticket: {title}[, priority {priority}][, assigned to {whom}]", "create a ticket (called|with the title|named) {quoted}[, priority {priority}][, assignee {name}]",
        "open a ticket (called|titled|named) {quoted}[ with {priority} priority][ for {whom}]", "make a ticket: {title}[; {priority} priority][; {name}]", "open a ticket to {work}[ with {priority} priority][, {who} (does it|will do it|takes care of it)]", "create a ticket to {work}[, {priority} priority][, assigned to {whom}]", "?we need a ticket to {work}[, {priority} priority][, for {whom}]",
        "?somebody (has to|must|should) {work}, (open|make|create) a ticket[ with {priority} priority][ and give it to {whom}]", "?{who} (has to|must|should) {work}, (open|make|create) a ticket[ with {priority} priority]", "?a ticket for {whom}: {title}[, {priority} priority]", "?new ticket: {title}[, {priority} priority][, {name}]", "?ticket: {title}[, {priority}][, for {whom}]",
        "?the {fact}. (Open|Create|Make) a ticket[ with {priority} priority][ for {whom}]", "?the {fact}, please open a ticket[, {priority} priority][, {who} (can|should) do it]", "?the {fact}, so we need a ticket[ with {priority} priority][ for {whom}]", "open a ticket because the {fact}[, {priority} priority][, assign it to {whom}]", "?the {fact} again! Ticket please[, {priority} priority][, for {whom}]",
        "open a ticket (for|about) the {noun}[, {priority} priority][, for {whom}]", "create a ticket (about|for) the {noun}[ with {priority} priority][ and assign it to {whom}]", "?we have a {noun}, (open|make) a ticket[, {priority} priority][ for {whom}]", "report the {noun} as a ticket[, priority {priority}][, assigned to {whom}]", "log a ticket for the {noun}[ at {priority} priority][ for {whom}]", "log a ticket: {title}[, {priority} priority][, {name} takes it]",
        "raise a ticket: {title}[ ({priority} priority)][, for {whom}]", "file a ticket {quoted}[, {priority} priority][, assignee: {name}]", "write a ticket for {whom} to {work}[, {priority} priority]", "have {whom} {work}, as a ticket[ with {priority} priority]", "put {quoted} in as a ticket[, {priority} priority][, for {whom}]",
        "?(can|could) we have a ticket to {work}[, with {priority} priority][, for {whom}]", "add a ticket: {title}[, {priority}][, for {whom}]", "start a ticket about the {noun}[, {priority} priority][ for {whom}]", "?to do: {work}[, {priority} priority][, for {whom}]. Make it a ticket", "?please see to it that somebody looks at the {noun}: ticket[, {priority} priority][, for {whom}]",
        "?the {fact} and that is {adjective}, open a ticket[ for {whom}]", "open {an_adjective} ticket: {title}[, for {whom}]", "create {an_adjective} ticket to {work}[ for {whom}]", "?{title}: open a ticket[ for {whom}], it's {adjective}", "create a ticket to {work}[ for {whom}], it is {adjective}", "?we need a ticket for the {noun}[, for {whom}], it is {adjective}", "?this is {adjective}: open a ticket to {work}[, for {whom}]",
        "?could somebody {work}? Make it a ticket[, {priority} priority][, for {whom}]", "?someone needs to {work}; put in a ticket[, {priority} priority][, for {whom}]", "?it looks like the {fact}. Can you open a ticket[ with {priority} priority][ for {whom}]",
        "?I just noticed that the {fact}, please (log|raise) a ticket[, {priority} priority][, for {whom}]", "?people are complaining that the {fact}. Ticket, please[, {priority} priority][, for {whom}]", "?ticket[ for {whom}][ ({priority} priority)]: {title}",
        "?bad news, the {fact}; open a ticket[ with {priority} priority][, {who} should look at it]", "?the {fact}, can {who} have a ticket for that[, {priority} priority]", "?we can't forget to {work}: ticket[ for {whom}][, {priority} priority], please", "get a ticket going to {work}[, {priority} priority][, for {whom}]",
        "put it down as a ticket that the {fact}[, {priority} priority][, for {whom}]", "put a ticket in the system: {title}[, {priority} priority][, for {whom}]", "enter a ticket[ for {whom}]: {title}[, {priority} priority]", "make a ticket about the {noun}[, {priority} priority][, and give it to {whom}]",
        "submit a ticket for the {noun}[, {priority} priority][, for {whom}]", "?there's a {noun} to be dealt with, so open a ticket[, {priority} priority][, for {whom}]", "?{who} wants to {work}, (make|open) a ticket for that[, {priority} priority]", "?I want {whom} to {work}, so create a ticket[ with {priority} priority]",
        "?have a ticket made for {whom}: {title}[, {priority} priority]", "?would you be so kind as to open a ticket: {title}[, {priority} priority][, for {whom}]", "?the {fact}, which is {adjective}. Make a ticket[ for {whom}]", "?{adjective}: {title}, needs a ticket[, for {whom}]",
        "add {an_adjective} ticket about the {noun}[ for {whom}]",
        "?ticket pls: {title}[, {priority} prio(rity|)][, {name}]", "?ticket {quoted}[, {priority} prio(rity|)][, {name}]", "?if it isn't too much trouble, I'd like a ticket to {work}[, with {priority} priority][, for {whom}]",
        "?I don't want to make a fuss, but the {fact}; could you open a ticket[ with {priority} priority][ for {whom}]",
    )},
    "update_ticket": {
        "status=closed": (
            "close {ticket}", "close {ticket}", "mark {ticket} as (done|closed|finished|solved)", "set {ticket} to closed", "?{ticket} <is|are> (done|finished|solved|fixed|taken care of)", "?{ticket} <has|have> been (done|fixed|solved|dealt with)", "?{ticket} can be closed", "?we (solved|finished|fixed) {ticket}", "?(can|could) {ticket} be closed", "?that's done: {ticket}", "resolve {ticket}", "tick off {ticket}", "?{ticket} <is|are> off the list, close <it|them>",
            "?no more work on {ticket}, close <it|them>", "?I have just finished {ticket}", "?{ticket}: done", "?work on {ticket} is (finished|complete)", "?{ticket} <is|are> completed", "change {ticket} to closed", "?problem solved, close {ticket}",
            "?{former} has finished {ticket}", "?{former} (is done with|sorted out|took care of) {ticket}", "?{ticket} <has|have> been sorted", "?nothing left to do on {ticket}, (close|finish) <it|them>", "?we can close {ticket}", "?{ticket} <is|are> history", "?all done with {ticket}", "wrap up {ticket}", "sign off {ticket}",
            "?it works again, so close {ticket}", "?you may close {ticket}, everything works", "?I got {ticket} done this morning", "?{what} is finished, that's {id}", "?{ticket} <doesn't|don't> need any more work, please close <it|them>",
            "?{ticket} done", "?{ticket} done, pls close", "?it would be very kind of you to close {ticket}", "?I'm happy to say that {ticket} <is|are> finished",
        ),
        "status=in_progress": (
            "set {ticket} to in progress", "mark {ticket} as (in progress|being worked on|started)", "?{ticket} <is|are> (in progress|being worked on|in the works|under way)", "?{ticket} <is|are> still being worked on", "?we (have started|started|are working) on {ticket}", "?work on {ticket} (has begun|has started|is under way)", "?somebody is working on {ticket} (now|already)", "start {ticket}", "put {ticket} in progress",
            "?I (began|started) working on {ticket}", "?I am on {ticket} now", "change {ticket} to in progress", "?{ticket} <has|have> been started", "?{ticket}: in progress", "?we are on {ticket} at the moment",
            "?{former} has started on {ticket}", "?{former} is working on {ticket} (now|at the moment)", "?{former} got going on {ticket}", "?{ticket} <is|are> being dealt with", "?{ticket} <is|are> not done yet, but we are working on <it|them>", "?someone has begun with {ticket}", "?we got started with {ticket}",
            "flag {ticket} as in progress", "?they are busy with {ticket} right now", "?I'm working on {what}, {id}, as we speak", "move {ticket} to in progress", "?{ticket} <is|are> under way",
            "?just so that you know, {former} is working on {ticket} now", "?{ticket} started",
        ),
        "status=open": (
            "reopen {ticket}", "open {ticket} again", "set {ticket} (back |)to open", "?{ticket} <is|are> not (done|solved|finished) after all, reopen <it|them>", "?the problem of {ticket} is back, open <it|them> again", "mark {ticket} as open", "put {ticket} back to open", "?{ticket} <has|have> to be opened again", "?{ticket} should be open again", "?nobody is working on {ticket} any more, set <it|them> to open", "change {ticket} back to open", "?it happened again, reopen {ticket}",
            "?{ticket} <was|were> closed too early, reopen <it|them>", "?{former} has stopped working on {ticket}, set <it|them> back to open", "?{ticket} <isn't|aren't> fixed after all, so open <it|them> again", "?I closed {ticket} by mistake, please reopen <it|them>", "?that didn't help: reopen {ticket}",
            "?same trouble as before, {ticket} <needs|need> to be reopened", "return {ticket} to open", "?we have to start over with {ticket}, put <it|them> back to open", "flag {ticket} as open again",
            "?{ticket} not fixed, reopen", "?I'm sorry to say that {ticket} <has|have> to be reopened",
        ),
        "assignee": (
            "assign {ticket} to {whom}", "give {ticket} to {whom}", "hand {ticket} (over |)to {whom}", "pass {ticket} (on |)to {whom}", "?{who} (takes|takes over|will do|will take care of|does) {ticket}", "?{who} (should|can|will) (do|take|handle) {ticket}", "?(can|could) {who} (take|do|handle) {ticket}", "let {whom} do {ticket}", "have {whom} take care of {ticket}", "put {whom} on {ticket}", "?{ticket} <goes|go> to {whom}", "?{ticket} <is|are> for {whom}",
            "?{ticket} <is|are> {whose} job now", "make {whom} responsible for {ticket}", "change the assignee of {ticket} to {name}", "?{ticket}: {who} (takes it|does it|will do it)", "turn {ticket} over to {whom}", "?{who} agreed to do {ticket}", "set the assignee of {ticket} to {name}", "reassign {ticket} to {whom}", "?I want {whom} to (do|take over) {ticket}", "?from now on {who} works on {ticket}", "take {ticket} from {former} and give <it|them> to {whom}", "?{former} is (ill|away|too busy), so {ticket} <goes|go> to {whom}", "?{former} can't do {ticket}, assign <it|them> to {whom}", "?not {former} but {who} does {ticket}", "hand {ticket} from {former} to {whom}", "move {ticket} over to {whom}",
            "?nobody is working on {ticket} yet, give <it|them> to {whom}", "?nobody has picked up {ticket}, so assign <it|them> to {whom}", "?{who} has time, so (give|pass) {ticket} to {him}", "?{who} knows about that, let {him} do {ticket}", "?{who} volunteered for {ticket}", "?{who} offered to (do|take) {ticket}",
            "?{who} is going to look after {ticket}", "?{who} will be (handling|dealing with|looking into) {ticket}", "?{former} is on holiday, let {whom} do {ticket}", "?{former} has too much to do, so {who} takes {ticket}", "?{former} asked {whom} to take over {ticket}", "?{ticket} should be (with|handled by) {whom}",
            "?{ticket} <belongs|belong> to {whom} from now on", "get {whom} to do {ticket}", "get {whom} onto {ticket}", "let {whom} have {ticket}", "?I'd like {whom} to look after {ticket}", "?I'd prefer {whom} on {ticket}", "?could you hand {ticket} to {whom}, who has time", "transfer {ticket} to {whom}",
            "delegate {ticket} to {whom}", "?it makes more sense if {who} does {ticket}", "?make that {whom} for {ticket}, not {former}", "take {former} off {ticket} and put {whom} on <it|them>",
            "?{ticket} to {whom} pls", "?I was hoping that {who} could take {ticket}", "?if {who} doesn't mind, give {ticket} to {him}", "?{former} out, {ticket} to {whom}",
        ),
        "assignee status=in_progress": (
            "?{who} is (already |)working on {ticket}: assign <it|them> and set <it|them> to in progress", "assign {ticket} to {whom} and set <it|them> to in progress", "give {ticket} to {whom} and mark <it|them> as in progress", "?{who} has started (on|with) {ticket}: assign <it|them> and put <it|them> in progress", "?{ticket} <goes|go> to {whom} and <is|are> in progress", "set {ticket} to in progress with {whom} (on it|as assignee)",
            "hand {ticket} to {whom}, in progress", "?{who} took over {ticket} and has started, (note that|update it)", "mark {ticket} as in progress, assignee {name}", "?{ticket}: {who}, in progress",
            "?{who} picked up {ticket} and is working on <it|them>, so update both", "?{who} is already busy with {ticket}: set {him} as assignee, status in progress", "pass {ticket} to {whom} and set <it|them> to in progress", "put {whom} on {ticket} and mark <it|them> as in progress",
            "?{who} got started on {ticket} today: make {him} the assignee and set <it|them> to in progress", "?{ticket}: in progress, with {whom} as the assignee",
        ),
        "assignee status=open": (
            "reopen {ticket} and give <it|them> to {whom}", "open {ticket} again and assign <it|them> to {whom}", "?{ticket} <is|are> not solved, reopen <it|them> for {whom}", "set {ticket} back to open and hand <it|them> to {whom}", "?{ticket} <has|have> to be opened again, {who} should do <it|them>", "reopen {ticket}, this time for {whom}",
            "reopen {ticket} and put {whom} on <it|them>", "?{ticket} <needs|need> to be reopened, and {who} should take <it|them>", "set {ticket} to open again, with {whom} as assignee", "?it's broken again: reopen {ticket} and let {whom} handle <it|them>",
        ),
        "assignee status=closed": (
            "?{who} did {ticket}: assign <it|them> to {him} and close <it|them>", "assign {ticket} to {whom} and close <it|them>", "close {ticket} and put {whom} down as assignee", "set {ticket} to closed, assignee {name}", "mark {ticket} as done and give <it|them> to {whom}",
            "?{who} solved {ticket}, so make {him} the assignee and close <it|them>", "?{who} finished {ticket}: note {him} as assignee and set <it|them> to closed", "?{ticket} <was|were> done by {whom}: put {him} down as assignee and close <it|them>",
        ),
    },
    "find_files": {"": (
        "find the {query}", "find (me |)the (file|files|document) (with|about|on|for) the {query}", "find files (with|about|on) {query}", "search for {query}", "search the files for {query}", "search for the {query}", "look for the {query}", "look for files (with|named|about|called) {query}", "look up the {query} file",
        "?where is the {query}", "?where did we (put|save|leave) the {query}", "?where are the files (about|on|for) the {query}", "?do we have (a file|a document|anything|something) (about|on|with) (the |){query}", "?do we have the {query} somewhere", "?is there (a|any) (file|document) (about|with|on|called) {query}", "?is the {query} in our files", "?which files (have {query} in the name|are about {query}|mention {query})",
        "?I can't find the {query}", "?I am looking for the {query}", "?I need the {query}, (what is the file called|where is it|find it)", "?what is the file with the {query} called", "?what's the name of the {query} file", "get me the file name of the {query}", "show me (the|all) files (about|on|with) {query}", "show me the {query} files", "list (the|all) files (about|named|with) {query}", "locate the {query}", "?have we got the {query} as a file", "dig out the {query}",
        "?what files are there (about|on|for) (the |){query}", "check (whether|if) there is a file (about|for) the {query}", "?under what name did we save the {query}", "?anything on {query} in the files", "?the {query}, where is it", "hunt for the {query} among the files", "?who knows where the {query} is? Search the files",
        "?any idea where the {query} (is|went|might be)", "?where would I find the {query}", "?where did the {query} go", "?I know we have the {query} somewhere, what's the file", "?I can't remember what we called the {query} file", "?can I get the file name for the {query}",
        "?I have to look something up in the {query}, which file is that", "?someone asked me about the {query}, is there a file", "?there must be a file (about|with) the {query}", "see if there's (anything|a file) on the {query}", "see what files we have on the {query}", "track down the {query}", "try to find the {query}",
        "look through the files for {query}", "go through our files and find the {query}", "?did anybody save the {query}", "?have we saved anything (about|on) the {query}", "?would you have a look for the {query} in our files", "?file about the {query}", "?{query} file?", "?what do we have on the {query} in the files",
        "scan the file names for {query}", "turn up the {query} for me",
        "?files {query}?", "?{query}: which file is it", "?I was hoping you could find the {query} for me", "?sorry, but I've no clue where the {query} is. Could you look",
    )},
    "share_file": {"": (
        "share {file} with {whom}", "share {file} with {whom}", "give {whom} access to {file}", "let {whom} (see|have|read|open) {file}", "send {file} to {whom}", "send {whom} {file}", "make {file} (available|accessible) to {whom}", "grant {whom} access to {file}", "open {file} for {whom}", "pass {file} on to {whom}", "?{who} (needs|wants|should get|should have|has asked for|is asking for) {file}", "?{who} needs access to {file}", "?{who} should be able to (open|see|read) {file}",
        "?{who} cannot open {file}, please share it", "?(can|could) {who} (have|get|see) {file}", "?(can|could) {who} get access to {file}", "?{file} <is|are> for {whom}, share <it|them>", "?{file} should go to {whom}", "?{file} to {whom}", "unlock {file} for {whom}", "?{who} has to (look at|check|read) {file}: share <it|them>", "?{who} would like to (see|read) {file}", "?I promised {whom} {file}, share <it|them>", "forward {file} to {whom}", "provide {whom} with {file}", "?{who} is waiting for {file}",
        "give {file} to {whom}", "?make sure {who} (has|gets) {file}", "get {file} over to {whom}", "allow {whom} to (read|open|see) {file}", "?{who} does not have {file} yet, share <it|them>", "?please see that {who} can open {file}", "share {file} with {whom} (of|from) {firm}", "?{who} (of|from|at) {firm} needs {file}", "give {whom} from {firm} access to {file}", "send {file} to {whom} at {firm}",
        "?{who} hasn't (got|seen) {file} yet, please share <it|them>", "?{who} keeps asking for {file}", "?{who} ought to have {file}", "?{who} ought to see {file}", "?{who} could do with {file}", "?{who} is going to need {file}", "?{who} (requested|wants) access to {file}", "let {whom} in on {file}",
        "let {whom} have a look at {file}", "get {whom} access to {file}", "?I'd like {whom} to have {file}", "?I'd like {whom} to be able to read {file}", "?could you get {file} to {whom}", "?is it possible for {whom} to get {file}", "?may {who} have {file}?", "?{file} <is|are> what {who} needs, so share <it|them>",
        "?would you be so kind as to share {file} with {whom}", "?{file} for {whom} please", "release {file} to {whom}", "set up access to {file} for {whom}", "?{who} over at {firm} is waiting for {file}", "?our contact at {firm}, {whom}, needs {file}",
        "?access to {file} for {whom} pls", "?whenever it suits you, please give {whom} access to {file}", "?it would be very kind of you to share {file} with {whom}", "?{who} asked me so nicely for {file}, so please share <it|them>",
    )},
}  # fmt: skip
"""Tool -> what is said -> templates; "status=open" is said by the template itself."""

CHATTER = (
    "The phone has not stopped ringing all morning.", "I'm just back from the workshop.", "What a morning.", "I am on my way out.", "My coffee is getting cold.", "The boss just came by.", "I'm in the van right now.",
    "It is a madhouse here today.", "I only have a minute.", "Finally some quiet.", "I've just been told.", "Morning!", "Hello again.", "It's me again.", "I nearly forgot.", "Sorry, typing on my phone.", "Right, next point.",
    "Busy day.", "I just got off the phone.", "We talked about it at lunch.", "Back at my desk.", "I hope you had a good weekend.", "The others are already gone.", "There is a queue at the counter.", "So, back to work.",
)  # fmt: skip
"""Before or after a request."""
PERSONS = {"find_contact": "name", "create_ticket": "assignee", "update_ticket": "assignee", "share_file": "person"}
_SAYS = {
    **dict.fromkeys(("on", "date"), ("date",)), **dict.fromkeys(("at", "time"), ("time",)), **dict.fromkeys(("when", "new"), ("date", "time")),
    **dict.fromkeys(("title", "a_title", "quoted", "work", "fact", "noun"), ("title",)), "people": ("attendees",), "minutes": ("minutes",), "by": ("due_date",),
    "event": ("event_id",), "invoice": ("invoice_id",), "ticket": ("ticket_id",), "file": ("file_name",), "amount": ("amount",), "customer": ("customer",),
    **dict.fromkeys(("payer", "was", "former", "firm", "contact", "him"), ()), "status": ("status",), "priority": ("priority",), "adjective": ("priority",), "an_adjective": ("priority",), "query": ("query",),
}  # fmt: skip

_IDS = {
    "move_event": "event_id",
    "cancel_event": "event_id",
    "mark_invoice_paid": "invoice_id",
    "update_ticket": "ticket_id",
}
_STIFF = re.compile(
    r"\}:|^\?\{(event|ticket|file|invoice)\} (off|done|started|not|now|to|paid)\b|(:|new) \{(event|invoice|ticket|file)\}"
)  # "it: paid" is no sentence
_SUBJECT = re.compile(r"\{people\} (and I|can|will|\(will|suggested)")  # "him and I"
_OBJECT = re.compile(
    r"(for|to|of|from|invoice|invoiced|billed|bill|charge|write|issue|send)( \||\)|\|to\)|\|for\))? \{customer\}(?! (has|does|get))"
)


@cache
def _templates(tool: str) -> tuple[tuple[str, frozenset[str], frozenset[str], dict[str, str]], ...]:
    """Templates with the slots that they need, the arguments that they can say, and those that they say themselves."""
    found = []
    for key, templates in ASKS[tool].items():
        fixed = dict(part.split("=") for part in key.split() if "=" in part)
        for each in templates:
            args = set(fixed)
            for slot in slots(each):
                # A due date is said by {date} too, and {who} ... by any form of the person.
                args |= (
                    {"due_date"} if tool == "create_invoice" and slot in ("date", "on") else set(_SAYS.get(slot, ()))
                )
                if slot == "id":
                    args.add(_IDS[tool])
                if slot in ("who", "whom", "whose", "name"):
                    args.add(PERSONS[tool])
            found.append((each, frozenset(slots(each) - omissible(each)), frozenset(args), fixed))
    return tuple(found)


def phrase(
    tool: str, arguments: dict[str, object], words: dict[str, str], dice: Dice, several: bool = False
) -> str | None:
    """A request in words that says all arguments and no others; None if there is none.

    Args:
        tool: by name.
        arguments: of the call.
        words: what stands in slots.
        dice: chooses.
        several: whether several things are meant.
    """
    fitting = [
        template
        for template, needs, says, fixed in _templates(tool)
        if needs <= words.keys() and says >= arguments.keys() and all(arguments.get(k) == v for k, v in fixed.items())
    ]
    if {"it", "that", "this"} & {*words.values()}:
        fitting = [each for each in fitting if not _STIFF.search(each)]
    if words.get("customer") == "them":
        fitting = [each for each in fitting if _OBJECT.search(each)] or fitting
    if words.get("people") in ("him", "her"):
        fitting = [each for each in fitting if not _SUBJECT.search(each)]
    if not fitting:
        return None
    template = dice.one(fitting)
    whole = "?" * template.startswith("?")
    parts = template.removeprefix("?").replace(">", "<").split("<")
    text = "".join(part.split("|")[several] if i % 2 else part for i, part in enumerate(parts))
    return whole + fill(text, words, dice)
