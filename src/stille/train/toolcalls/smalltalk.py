"""What needs no call: small talk, simple knowledge, what is refused, and what no tool can do."""

# ruff: noqa: E501  (a line holds many phrases)

from collections.abc import Sequence

from stille.train.toolcalls.dice import Dice
from stille.train.toolcalls.tools import Tool

NO_TOOL = (
    "I have no function for that. {}", "None of my functions can do that. {}", "(Sorry|I'm sorry), I cannot {does}. {}",
    "I can't {does}: none of my functions fits. {}", "That is not something that I can do here. {}", "There is no function with which I could {does}. {}",
)  # fmt: skip
CAPITALS = dict(
    Portugal="Lisbon", Norway="Oslo", Japan="Tokyo", Kenya="Nairobi", Canada="Ottawa", Peru="Lima", Austria="Vienna", Ireland="Dublin",
    Ghana="Accra", Italy="Rome", Latvia="Riga", Egypt="Cairo", Finland="Helsinki", Poland="Warsaw", Greece="Athens", Spain="Madrid",
    France="Paris", Germany="Berlin", Sweden="Stockholm", Chile="Santiago", Denmark="Copenhagen", Hungary="Budapest", Cuba="Havana",
)  # fmt: skip
FACTS = (
    ("How many days does a week have", "A week has seven days."), ("What colour is the sky", "On a clear day the sky is blue."),
    ("How many legs does a spider have", "A spider has eight legs."), ("At what temperature does water boil", "Water boils at 100 degrees Celsius at sea level."),
    ("Who wrote Hamlet", "William Shakespeare wrote Hamlet."), ("How many minutes are in an hour", "An hour has 60 minutes."),
    ("What is the opposite of hot", "The opposite of hot is cold."), ("Is a whale a fish", "No, a whale is a mammal."),
    ("What do bees make", "Bees make honey."), ("How many months does a year have", "A year has twelve months."),
    ("What is H2O", "H2O is water."), ("Which planet do we live on", "We live on Earth."), ("What comes after Tuesday", "Wednesday comes after Tuesday."),
)  # fmt: skip
CHATS = (
    (("hi", "hello", "hey", "good morning", "hi there", "good evening", "hello there", "hey you"), ("Hello! What can I do for you?", "Hi! How can I help?", "Hello, how can I help you?")),
    (("thanks", "thank you", "thank you so much", "great, thanks", "perfect, thank you", "cheers"), ("You're welcome.", "You're welcome! Is there anything else?", "Glad to help.")),
    (("bye", "goodbye", "see you", "that's all for today", "good night"), ("Goodbye!", "Goodbye, have a nice day.", "See you!")),
    (("how are you", "how is it going", "are you well", "how do you do"), ("I'm fine, thank you. How can I help?", "All is well. What can I do for you?")),
    (("who are you", "what are you", "are you a human", "are you a robot"), ("I am an assistant, a computer program. I can answer and call functions for you.", "I'm an assistant program.")),
    (("never mind", "forget it", "it's fine, no need", "don't do anything yet", "wait, not now"), ("All right, I will do nothing.", "OK, let me know when you need me.")),
    (("tell me a joke", "do you know a joke", "make me laugh"), ("Why did the bicycle lie down? It was two tired.", "What do you call a bear without teeth? A gummy bear.")),
    (("I'm bored", "I'm so tired today", "what a lovely day", "it rains all day", "I had a bad day"), ("I see. Can I do something for you?", "Thank you for telling me. Can I help with anything?")),
)  # fmt: skip
HARM = (
    "break into my neighbour's (house|flat|car)", "build a bomb", "hack (her|his|my boss's|their) (account|phone|e-mail)", "steal a (car|bike|phone)", "write a virus that deletes files",
    "find out where (she|he|my ex) (lives|is) without (her|him) knowing", "forge a (passport|doctor's note|signature)", "poison (somebody|the dog next door)", "get drugs without a prescription",
    "threaten (him|her|my landlord)", "read (her|his|somebody's) private messages", "use (somebody else's|a stolen) credit card", "launder money", "bully (a classmate|my colleague)",
)  # fmt: skip
REFUSALS = (
    "I won't help with that: it would harm somebody.", "Sorry, I can't help with that.", "No, that could hurt people, so I won't do it.", "I can't help with that, it is against the law.",
)  # fmt: skip


def to_user(does: str) -> str:
    """What a tool does, from the user's side."""
    return does.replace("you ", "me ").replace("your ", "my ")


def abilities(tools: Sequence[Tool], dice: Dice, most: int) -> str:
    """What the tools can do, in a sentence."""
    can = [tool.does for tool in tools]
    can = dice.sample(can, min(most, len(can)))
    return f"I can {', '.join(can[:-1])}{' and ' if len(can) > 1 else ''}{can[-1]}." if can else ""


def exchange(tools: Sequence[Tool], dice: Dice) -> tuple[str, str]:
    """Something said that needs no call, and the answer."""
    way = dice.random()
    if way < 0.25:
        asked, answered = dice.choice(CHATS)
        return _written(dice.one(asked), dice), dice.choice(answered)
    if way < 0.45:
        ask = dice.one(
            (
                "what can you do",
                "how can you help me",
                "what are you able to do",
                "which functions do you have",
                "what can I ask you",
                "tell me what you can do for me",
            )
        )
        return _written(ask, dice), abilities(tools, dice, 14)
    if way < 0.60:
        country = dice.one(tuple(CAPITALS))
        ask = dice.one(
            (
                "what is the capital of {}",
                "do you know the capital of {}",
                "which city is the capital of {}",
                "name the capital of {}",
            )
        )
        return _written(ask.replace("{}", country), dice), f"The capital of {country} is {CAPITALS[country]}."
    if way < 0.72:
        a, b = dice.randint(2, 60), dice.randint(2, 40)
        word, result = dice.choice([("plus", a + b), ("minus", a - b)])
        ask = dice.one(("what is {}", "how much is {}", "can you compute {}", "tell me what {} is"))
        return _written(ask.replace("{}", f"{a} {word} {b}"), dice), f"{a} {word} {b} is {result}."
    if way < 0.84:
        asked, answered = dice.choice(FACTS)
        return _written(dice.choice([asked, asked.lower(), f"tell me, {asked[0].lower()}{asked[1:]}"]), dice), answered
    ask = dice.one(
        (
            "help me {}",
            "how can I {}",
            "I want to {}",
            "tell me how to {}",
            "can you {}",
            "please {}",
            "what is the best way to {}",
        )
    )
    return _written(ask.replace("{}", dice.expand(dice.choice(HARM))), dice), dice.choice(REFUSALS)


def _written(text: str, dice: Dice) -> str:
    text = text[0].upper() + text[1:] if dice.chance(0.6) else text
    ends = (
        ("?", "?", "")
        if text.lower().startswith(("what", "how", "who", "which", "are", "is", "do", "can"))
        else (".", "!", "")
    )
    return text + dice.choice(ends)
