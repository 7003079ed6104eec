"""What needs no call in a company: small talk, knowledge, sums, questions about the assistant, and what no tool does."""

# ruff: noqa: E501  (a line holds many phrases)

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stille.train.toolcalls import smalltalk
from stille.train.toolcalls.company import words
from stille.train.toolcalls.company.say import say_clock, say_euros
from stille.train.toolcalls.kinds import DAYS
from stille.train.toolcalls.words import CITIES, FIRST, LAST

if TYPE_CHECKING:
    from stille.train.toolcalls.company.office import Office

CHATS = (
    *smalltalk.CHATS,
    (("good afternoon", "morning", "hi, I'm new here", "hello, are you there", "hey assistant", "moin", "good day"), ("Hello! What shall I do?", "Good day! How can I help?", "Hi, I'm here. What do you need?")),
    (("great", "perfect", "very good", "nice work", "wonderful", "well done", "you are a big help", "that was quick"), ("Thank you!", "Glad that it helps.", "Good. Is there anything else?")),
    (("happy birthday to me", "I got a new bike", "my team won last night", "I passed my exam", "we won the tender"), ("Congratulations!", "That is good news, congratulations!", "How nice!")),
    (("I have a headache", "I slept badly", "the customer was rude to me", "I'm stressed", "today everything goes wrong"), ("I'm sorry to hear that.", "That sounds hard. Tell me if I can take something off you.", "I'm sorry. I hope that it gets better.")),
    (("are you there", "can you hear me", "do you work at night", "are you still there", "hello?"), ("Yes, I'm here.", "Yes. What can I do for you?", "I'm here, go ahead.")),
    (("hang on a second", "wait a moment", "just a minute", "I'll be right back", "let me think", "not now"), ("Of course, take your time.", "All right, I'll wait.", "No problem.")),
    (("don't cancel anything yet", "leave everything as it is", "don't change anything for now", "no changes today", "please don't do anything until I'm back"), ("All right, I'll leave everything as it is.", "OK, nothing will be changed.", "Understood, I do nothing.")),
    (("sorry, wrong window", "oops, that was not for you", "ignore that", "that was a typo"), ("No problem.", "That's fine.", "Never mind.")),
    (("I haven't decided yet", "let me check with the others first", "I'll tell you later", "I have to ask my boss first", "maybe, I'm not sure yet", "let's talk about it tomorrow"), ("All right, tell me when you know.", "No hurry.", "OK, I'll wait for you.")),
    (("that was my mistake", "sorry for the confusion", "I was wrong, sorry", "excuse my typing", "sorry about that"), ("No problem at all.", "Don't worry.", "That's all right.")),
    (("the meeting was great", "the customer was very happy", "the audit went well", "we got the order", "the new machine runs well"), ("That is good to hear!", "I'm glad!", "Wonderful.")),
    (("I'm off for lunch", "I'll go home now", "I'm in a meeting until three", "back in ten minutes", "I'm leaving early today"), ("All right, see you later.", "OK. I'll be here.", "Fine, until later.")),
)  # fmt: skip
THANKS = (
    "thanks", "thank you", "thanks a lot", "great, thanks", "perfect, thank you", "that's all, thanks", "thank you, that was all", "wonderful, that's it for now", "super, thanks", "many thanks", "cheers", "ok thanks", "good, that's everything",
    "thank you very much, bye", "that helps, thanks", "excellent, thank you", "nice, that's all I needed", "alright, thanks for the help", "thx", "good job, thank you", "thanks, have a nice day", "ok, done for today", "great, that's it", "thank you, see you tomorrow",
    "ta", "brilliant, thank you", "lovely, thanks", "much appreciated", "that's me done, thanks", "nothing else for now, thank you", "you've been a great help", "ok that's it from me", "sorted, thanks", "no more for now", "cool, thank you", "that will do, thanks",
)  # fmt: skip
WELCOME = (
    "You're welcome.",
    "You're welcome!",
    "Glad to help.",
    "Any time.",
    "My pleasure.",
    "Gladly. Have a good day.",
    "You're welcome, until next time.",
    "Happy to help.",
)
ABLE = (
    "what can you do", "how can you help me", "what are you able to do", "what can I ask you", "which functions do you have", "what do you know about us", "what are you good for", "what kind of things can you do", "what can I use you for", "how do I work with you", "tell me what you can do",
    "what sort of jobs can I give you", "give me an idea of what you do", "what are your features", "I'm new, what can you take care of",
)  # fmt: skip
CAN = (
    "look up contacts", "show the calendar of a day", "put events into the calendar", "move events", "cancel events", "list invoices", "write invoices", "mark invoices as paid", "open tickets", "update tickets", "find files", "share files",
)  # fmt: skip
FACTS = (
    ("what is 100 degrees celsius in fahrenheit", "100 degrees Celsius are 212 degrees Fahrenheit."), ("how many grams are in a kilo", "A kilogram has 1,000 grams."), ("what is an invoice", "An invoice is a bill: it says what a customer has to pay, and by when."), ("who painted the Mona Lisa", "Leonardo da Vinci painted it."),
    ("what does VAT mean", "VAT is value added tax."), ("how many centimetres are in an inch", "An inch has 2.54 centimetres."), ("what is the largest ocean", "The Pacific is the largest ocean."), ("when did the Second World War end", "It ended in 1945."), ("what is steel made of", "Steel is made of iron with a little carbon."),
    ("how long is a marathon", "A marathon is 42.195 kilometres long."), ("who invented the telephone", "Alexander Graham Bell patented the telephone in 1876."), ("what is the square root of 144", "It is 12."), ("how many sides does a hexagon have", "A hexagon has six sides."), ("what is photosynthesis", "Plants make sugar and oxygen out of light, water and carbon dioxide."),
    ("which metal is liquid at room temperature", "Mercury."), ("how many players has a football team", "Eleven on the field."), ("what does a ticket mean here", "A ticket is a note of something that has to be done."), ("is 17 a prime number", "Yes, 17 is a prime number."), ("what is the fastest land animal", "The cheetah."),
    ("why is the sea salty", "Rivers wash salt out of the rocks into it."), ("what is the difference between a net and a gross price", "The gross price includes the tax, the net price does not."), ("how many hours are in a week", "A week has 168 hours."), ("who was the first man on the moon", "Neil Armstrong, in 1969."), ("what is a leap year", "A year with 366 days; it comes every four years, with few exceptions."),
    ("what's the chemical symbol of gold", "It is Au."), ("how do you spell necessary", "n-e-c-e-s-s-a-r-y."), ("what is another word for quick", "Fast, for example."), ("which is bigger, the sun or the moon", "The sun, by far."), ("how many strings has a violin", "A violin has four strings."), ("what do you call a baby sheep", "A lamb."),
    ("what is the plural of mouse", "Mice."), ("what does PDF stand for", "Portable Document Format."), ("what does ASAP mean", "As soon as possible."), ("is glass recyclable", "Yes, glass can be recycled again and again."), ("which month has 28 days", "All of them have at least 28; February has just 28 in most years."), ("how do I write a good reminder", "Be friendly and short, name the invoice and the amount, and set a new date."),
    ("how should I begin a meeting", "Say what it is for, who is there, and how long it takes."), ("what is a good length for a meeting", "Half an hour is enough for most."), ("should I pay an invoice before it is due", "You may, but you need not, unless there is a discount for it."), ("what does due date mean", "It is the day by which something has to be paid."),
    ("how do I remove coffee stains", "Cold water and a little soap at once help most."), ("what is a deposit", "A part of the price that is paid beforehand."), ("what's a quorum", "The number of members who have to be there for a vote to count."), ("what are minutes of a meeting", "A short record of what was said and decided."),
)  # fmt: skip
WORDS = {
    "German": dict(invoice="Rechnung", calendar="Kalender", customer="Kunde", file="Datei", meeting="Besprechung", bread="Brot", water="Wasser", tomorrow="morgen", thanks="danke", house="Haus", tree="Baum", friend="Freund"),
    "French": dict(invoice="facture", calendar="calendrier", customer="client", file="fichier", meeting="réunion", bread="pain", water="eau", tomorrow="demain", thanks="merci", house="maison", tree="arbre", friend="ami"),
    "Spanish": dict(invoice="factura", calendar="calendario", customer="cliente", file="archivo", meeting="reunión", bread="pan", water="agua", tomorrow="mañana", thanks="gracias", house="casa", tree="árbol", friend="amigo"),
    "Italian": dict(invoice="fattura", calendar="calendario", customer="cliente", meeting="riunione", bread="pane", water="acqua", tomorrow="domani", thanks="grazie", house="casa", tree="albero", friend="amico"),
    "Dutch": dict(invoice="factuur", calendar="kalender", customer="klant", file="bestand", meeting="vergadering", bread="brood", water="water", tomorrow="morgen", house="huis", tree="boom", friend="vriend"),
}  # fmt: skip
TRANSLATE = (
    "what is {w} in {l}",
    "translate {w} into {l}",
    "how do you say {w} in {l}",
    "what's the {l} word for {w}",
    "{w} in {l}, please",
    "what does {w} mean in {l}",
    "tell me the {l} for {w}",
)
SUMS = (
    "what is {s}",
    "how much is {s}",
    "compute {s}",
    "{s}, what does that make",
    "quick sum: {s}",
    "what does {s} make",
    "tell me what {s} is",
    "I need {s} worked out",
)
JOKES = (
    "Why did the invoice go to school? It wanted to be settled.",
    "What is a calendar's greatest fear? That its days are numbered.",
    "Why was the broom late? It overswept.",
    "What do you call a fake noodle? An impasta.",
    "Parallel lines have so much in common. It's a pity that they never meet.",
)
TELL = (
    "tell me a joke",
    "do you know a good joke",
    "make me smile",
    "one joke, please",
    "cheer me up with a joke",
    "got any jokes",
    "a joke for the break",
)
OPINIONS = (
    (("do you like mondays", "what is your favourite colour", "which football team do you support", "do you prefer tea or coffee", "what music do you like", "do you have a hobby"), ("As a program I have no favourites.", "I have no taste of my own, but I like a tidy calendar.", "I can't say, I'm a program.")),
    (("do you think we have too many meetings", "is our price fair", "am I a good boss", "should I hire my cousin", "do you think it will be a good year", "is blue or green better for our logo", "should we move to a bigger hall", "which of my colleagues is the best"), ("That is for you to judge.", "I can't judge that from here.", "I would not decide that for you; what speaks for it, and what against?")),
    (("write a short birthday greeting", "give me a sentence for a thank-you card", "a nice line for a postcard, please", "suggest a toast for the party"), ("All the best, and may the year bring much joy!", "With all good wishes, and thanks for everything.", "To many good years to come!")),
    (("give me a name for a cat", "suggest a name for our new van", "what could we call the coffee machine"), ("How about Pixel?", "Maybe Rocket.", "I suggest Bertha.")),
    (("how should I greet a new customer", "how do I stay calm on the phone", "how do I say no politely", "how do I write a short apology"), ("Be friendly, short and clear.", "Breathe, listen, and say in one sentence what you can do.", "Say thank you first, then what is possible and what is not.")),
)  # fmt: skip
ABOUT = (
    (("can you move events too", "are you able to move meetings", "can you change when a meeting is"), "Yes. Tell me which event, and the new day and time."),
    (("how do I cancel an event with you", "can you cancel meetings", "is it possible to have you cancel something"), "Yes, tell me which event and I will cancel it."),
    (("can you write invoices", "do you also do invoices", "how do I get an invoice from you"), "Yes. I need the customer, the amount and the due date."),
    (("can you open tickets", "how do tickets work here", "how do I get a ticket"), "Tell me what has to be done, and I open a ticket for it."),
    (("can you share files with people", "how do I share a file with your help"), "Yes, tell me the file and the person."),
    (("what do you need to put something into the calendar", "what do I have to say for a new event"), "A title, the day and the time. Guests and length if you like."),
    (("do you see our files", "can you read what is in the files"), "I can search their names and share them, but I do not read what is in them."),
    (("do you remember what I said last week", "do you know me"), "No, I only know this conversation and what I can look up."),
    (("what day is it", "which date is today", "what's today's date", "what day of the week is it"), "It is {today}."),
    (("who do you work for", "which company is this", "where am I here"), "This is the assistant of {house}."),
    (("could you also find somebody's e-mail address", "do you know our contacts", "can you look people up"), "Yes. Tell me the name, and I look the person up."),
    (("can you close tickets too", "are you allowed to change tickets", "can you give a ticket to somebody else"), "Yes: tell me which ticket, and whether its status or its assignee changes."),
    (("would you be able to tell me what's in the calendar", "do you see my calendar", "can you see what's on a given day"), "Yes, tell me the day and I list its events."),
    (("can you tell which invoices are unpaid", "do you know who owes us money", "can you keep track of payments"), "I can list invoices, also only the open ones, and mark them as paid."),
)  # fmt: skip
NEAR = (
    "order (a|two|three) (pizza|pizzas|sandwiches|coffees) for the (team|office|meeting)", "order (paper|toner|flowers|a cake|office chairs) for (us|the office|the reception)", "turn (up|down|off) the (heating|lights|air conditioning|radio|music)", "lock the (door|gate|workshop)",
    "book a (flight|train|hotel|taxi|table) (to|in) {city}", "reserve a table for (four|six|two) at (eight|seven|noon)", "phone {person}", "call {person} (on the phone|and say that I am late|back)", "ring {customer} (up|and ask for the manager)", "send {person} (a text message|an SMS|a fax|a letter)",
    "write (an e-mail|a mail) to {person}", "e-mail {person} the news", "refund {invoice}", "refund {customer} (the last invoice|{amount})", "change the amount of {invoice} to {amount}", "lower {invoice} by (ten|five|20) percent", "delete {invoice}", "send {customer} a (reminder|dunning letter) for {invoice}", "change the due date of {invoice} to {day}",
    "print {file}", "delete {file}", "rename {file} to (final|old|new version)", "translate {file} into (German|French|Spanish)", "open {file} and tell me what it says", "summarise {file}", "upload a new (logo|price list|file)", "stop sharing {file}", "take {person}'s access to {file} away", "copy {file} to (my desktop|a USB stick)", "edit {file}",
    "delete {ticket}", "change the priority of {ticket} to (high|low|normal)", "rename {ticket}", "merge {ticket} with another one", "add a comment to {ticket}", "set a deadline for {ticket}", "invite {person} to {event}", "make {event} (half an hour|an hour) longer", "rename {event}", "change the title of {event}", "book a room for {event}", "remove {person} from {event}",
    "add a new (contact|customer) called {stranger}", "change {person}'s e-mail address", "delete {person} from the contacts", "give {person} a (raise|day off)", "fire {person}", "transfer {amount} to {customer}", "pay the (rent|electricity bill|salaries)", "check (our bank account|the balance of the account)", "book {amount} to petty cash", "sign the contract with {customer}",
    "play some music", "set (an alarm|a timer) for {clock}", "take a photo of the (hall|yard)", "start the (coffee machine|dishwasher|forklift)", "post a picture on (Instagram|our website)", "update the website", "restart the (server|router)", "install a new (printer driver|browser)", "reset my password", "track the parcel (to {customer}|from {city})",
    "look up the stock of (screws|paint|gloves)", "count the (boxes|screws) in the storeroom", "water the plants", "clean the (kitchen|hall)", "record my working hours", "approve my holiday", "hire a new apprentice", "buy a new (van|drill|laptop)", "sell the old (van|machine)",
    "get (us|me) a cab to {city}", "buy train tickets to {city} for {person} and me", "find (me |)a hotel in {city} for {day}", "get {person} on the line", "leave {person} a voicemail", "text {person} that I am running late", "reply to {person}'s last e-mail", "forward {person}'s mail to {customer}", "write {customer} a letter about {invoice}", "send {customer} {invoice} (by mail|once more)", "cancel {invoice}", "split {invoice} into two", "give {customer} a discount on {invoice}", "give {customer} two more weeks for {invoice}", "move {file} to another folder", "make a PDF out of {file}", "correct the figures in {file}", "lock {file} with a password", "attach {file} to {ticket}", "attach {file} to {event}", "leave a note on {ticket} that the parts are here", "move the deadline of {ticket} to {day}", "make {ticket} (more|less) urgent", "add {person} to {event}", "take {person} off the guest list of {event}", "shorten {event} to (ten|20) minutes", "get a (bigger|quieter) room for {event}", "start a video call with {person}", "note {person}'s new phone number", "save {stranger} as a new contact", "update the company of {person} in the contacts", "put {person} on sick leave", "wire {amount} to {person}", "pay {customer} {amount}", "work out (the VAT|our turnover) for this month", "order more (screws|paint|gloves)", "book the van for {day}", "let the cleaners in", "call the elevator", "dim the lights in the showroom", "set the thermostat to 21 degrees", "wake me up at {clock}", "read me the news", "check the weather for {day}", "show me the way to {customer}", "put up a job advert", "make a backup of the server", "scan the letters on my desk",
)  # fmt: skip
NEAR_ASKED = (
    ("what's the weather (like |)(today|tomorrow|in {city})", "tell the weather"), ("will it rain (today|tomorrow|this afternoon)", "tell the weather"), ("how do I get to {city} by train", "plan journeys"), ("what's the traffic like (right now|to {city})", "see the traffic"), ("how warm is it in the (hall|office)", "measure that"),
    ("what is the exchange rate of the dollar", "look up exchange rates"), ("how many (screws|boxes|gloves) do we have in stock", "see the stock"), ("who won the match (yesterday|last night)", "look up the news"), ("what's in the news (today|)", "read the news"), ("what is {person}'s phone number", "see phone numbers, only e-mail addresses and companies"),
    ("where is {person} right now", "see where people are"), ("is {person} in the office", "see who is there"), ("how much holiday do I have left", "see that"), ("what does {person} earn", "see that"), ("is the (printer|coffee machine|front door) (on|switched on)", "see that"), ("when does the next bus leave", "look up timetables"), ("how many (followers|visitors) did our website have", "see that"),
    ("what's for lunch (today|tomorrow)", "see the menu"), ("what did {person} say in the meeting", "know what was said there"), ("how old is {person}", "know that"), ("what does {file} say on page (two|three|five)", "read what is in files"), ("what's our profit this (year|month)", "work that out from here"),
    ("do I need an umbrella (today|tomorrow)", "tell the weather"), ("is there snow in {city}", "tell the weather"), ("how far is it to {city}", "measure distances"), ("when is the next train to {city}", "look up timetables"), ("what number can I reach {person} on", "see phone numbers, only e-mail addresses and companies"), ("has {person} (answered my mail|read my message)", "see mails"), ("did {person} come in today", "see who is there"), ("when is {person}'s birthday", "know birthdays"), ("who opened {file} last", "see who opened a file"), ("how big is {file}", "see the size of files"), ("how long has {ticket} been open", "see since when"), ("how many hours did {person} work (last week|this month)", "see working hours"), ("how much money is in our account", "see the bank account"), ("where is my parcel", "track parcels"), ("what does a flight to {city} cost", "look up flights"), ("are there any new (mails|messages)", "see mails"), ("is the server (down|up)", "see that"),
)  # fmt: skip
CANNOT = (
    "I can't {does}.", "I'm sorry, I can't {does}.", "I have no function to {does}.", "None of my functions can {does}.", "That is beyond me: I cannot {does}.", "Sorry, I cannot {does} from here.", "Unfortunately there is no way for me to {does}.", "No, I am not able to {does}.",
)  # fmt: skip
NOT_THAT = (
    "I can't do that, I have no function for it.", "Sorry, none of my functions does that.", "That is not something that I can do here.", "I'm afraid I can't do that.", "That is beyond what I can do: calendar, invoices, tickets, files and contacts.", "I have no tool for that.", "No, that I cannot do from here.", "I'm sorry, that is not possible with my functions.",
    "You would have to do that yourself, I have no function for it.", "There is no function with which I could do that.",
)  # fmt: skip


def exchange(office: Office) -> tuple[str, str]:
    """Something said that needs no call, and the answer."""
    dice, way = office.dice, office.dice.random()
    if way < 0.42:
        return near_miss(office)
    if way < 0.54:
        asked, answered = dice.choice(CHATS)
        return written(office, dice.one(asked)), dice.choice(answered)
    if way < 0.60:
        can = dice.sample(CAN, dice.randint(4, 12))
        start = dice.choice(["I can", "I can", "Among other things I can", "For you I can"])
        return written(office, dice.one(ABLE)), f"{start} {', '.join(can[:-1])} and {can[-1]}."
    if way < 0.71:
        asked, answered = dice.one(FACTS)
        return written(office, asked), answered
    if way < 0.76:
        language = dice.choice([*WORDS])
        word = dice.one([*WORDS[language]])
        asked = dice.one(TRANSLATE).replace("{w}", dice.choice([word, f'"{word}"'])).replace("{l}", language)
        return written(office, asked), dice.choice(["{}.", "It is {}.", "That is {} in {l}.", "{}"]).replace(
            "{}", WORDS[language][word]
        ).replace("{l}", language)
    if way < 0.82:
        said, result = _sum(office)
        return written(office, dice.one(SUMS).replace("{s}", said)), dice.choice(
            ["That is {}.", "{}.", "It makes {}.", f"{said} is {{}}."]
        ).replace("{}", result)
    if way < 0.85:
        return written(office, dice.one(TELL)), dice.choice(JOKES)
    if way < 0.91:
        asked, answered = dice.choice(OPINIONS)
        return written(office, dice.one(asked)), dice.choice(answered)
    if way < 0.97:
        asked, answer = dice.choice(ABOUT)
        today = f"{DAYS[office.today.weekday()]}, {office.today.isoformat()}"
        return written(office, dice.one(asked)), answer.replace("{today}", today).replace(
            "{house}", office.company.house
        )
    asked = (
        f"{dice.choice(['help me to', 'how can I', 'please', 'I want to'])} {dice.expand(dice.choice(smalltalk.HARM))}"
    )
    return written(office, asked), dice.choice(smalltalk.REFUSALS)


def near_miss(office: Office) -> tuple[str, str]:
    """Something that sounds like a task, for which there is no tool."""
    dice = office.dice
    if dice.chance(0.25):
        asked, does = dice.one(NEAR_ASKED)
        answers = [dice.choice(CANNOT).replace("{does}", does), dice.choice(NOT_THAT)]
        return written(office, _filled(office, dice.expand(asked))), dice.choice(answers)
    wish = _filled(office, dice.expand(dice.one(NEAR)))
    answers = [
        dice.choice(CANNOT).replace("{does}", _to_user(wish)),
        dice.choice(NOT_THAT),
        dice.choice(NOT_THAT),
    ]
    return office.around([wish]), dice.choice(answers)


def _to_user(wish: str) -> str:
    """A wish from the assistant's side."""
    you = {"my": "your", "me": "you", "us": "you", "I am": "you are"}
    return re.sub(r"\b(my|me|us|I am)\b", lambda said: you[said[0]], wish)


def _filled(office: Office, text: str) -> str:
    dice, state = office.dice, office.company.state
    full = dice.choice([*state.contacts])
    values = {
        "city": lambda: dice.one(CITIES),
        "person": lambda: office.called(full),
        "customer": office.customer,
        "invoice": lambda: dice.choice([*state.invoices]),
        "ticket": lambda: dice.choice([*state.tickets]),
        "event": lambda: dice.choice([*(state.events or ["EV-1"])]),
        "file": lambda: dice.choice([*state.files]),
        "amount": lambda: say_euros(dice, words.euros(dice)),
        "day": lambda: dice.choice(DAYS),
        "clock": lambda: say_clock(dice, words.clock(dice)),
        "stranger": lambda: f"{dice.one(FIRST)} {dice.one(LAST)}",
    }
    for name, value in values.items():
        if f"{{{name}}}" in text:
            text = text.replace(f"{{{name}}}", value())
    return text


def _sum(office: Office) -> tuple[str, str]:
    dice = office.dice
    a, b = dice.randint(2, 900), dice.randint(2, 90)
    way = dice.randrange(5)
    if way == 0:
        return dice.choice([f"{a} + {b}", f"{a} plus {b}"]), str(a + b)
    if way == 1:
        return dice.choice([f"{a} - {b}", f"{a} minus {b}"]), str(a - b)
    if way == 2:
        a %= 30
        return dice.choice([f"{a} x {b}", f"{a} times {b}"]), str(a * b)
    if way == 3:
        percent = dice.choice([5, 10, 20, 25, 50])
        return dice.choice([f"{percent}% of {a * 20} euros", f"{percent} percent of {a * 20}"]), str(
            a * 20 * percent // 100
        )
    return dice.choice([f"{a * b} divided by {b}", f"{a * b} / {b}"]), str(a)


def written(office: Office, text: str) -> str:
    """With a capital and a mark at the end, or without."""
    dice = office.dice
    text = text[0].upper() + text[1:] if dice.chance(0.6) else text
    asks = text.casefold().startswith(
        ("what", "how", "who", "which", "are", "is ", "do ", "can", "will", "should", "why", "when", "where", "am ")
    )
    end = dice.choice(["?", "?", "?", ""] if asks else [".", ".", "!", ""])
    return text + (end if text[-1] not in "?!." else "")
