"""A smart home, a kitchen, a fleet of vehicles."""

# fmt: off
# ruff: noqa: E501  (a line is a template)
from typing import Annotated, Any

from stille.train.toolcalls.kinds import (
    City,
    Clock,
    Count,
    Day,
    Minutes,
    People,
    Percent,
    Person,
    code,
    enum,
    pool,
    several,
    whole,
)
from stille.train.toolcalls.tools import ToolError, World, tool, world

Room = Annotated[str, enum("kitchen bedroom living_room bathroom hallway office garage nursery cellar attic", "In which room?", {
    "living_room": "(living room|lounge)", "office": "(office|study)",
})]
Light = Annotated[str, enum("warm cold daylight red blue green", "Which colour?", {"cold": "(cold|cool)"})]
Switch = Annotated[str, enum("on off", "On or off?")]
Device = Annotated[str, enum("washing_machine dishwasher dryer robot_vacuum coffee_machine oven heater fan humidifier", "Which device?", {
    "robot_vacuum": "(robot vacuum|vacuum robot|vacuum cleaner)", "washing_machine": "(washing machine|washer)",
})]


@world
class Home(World):
    """Lights, heating, doors, devices."""

    name = "home"

    @tool(
        "set_light switch_light control_light", "(Switches|Turns) the light of a room on or off.", "switch lights on and off",
        "room|location: which room; state|power|value: on or off; brightness|level|intensity: in percent",
        ["(turn|switch) {state} the (light|lights|lamp) in the {room}[, at {brightness} percent]", "(turn|switch) the {room} (light|lights) {state}[ with {brightness}% brightness]",
         "?(lights|light) {state} in the {room}[ at {brightness}%]", "set the {room} (light|lamp) to {state}[, brightness {brightness}]"],
        ["The light in the {room} is {state}.", "Done, {room} light {state}."],
    )
    def set_light(self, room: Room, state: Switch, brightness: Percent = 100) -> dict[str, Any]:
        self.set("light", room, to=state)
        return {"room": room, "light": state}

    @tool(
        "set_light_color change_light_colour light_color", "Changes the (colour|tone) of the light in a room.", "change the colour of lights",
        "room|location: which room; color|colour|tone: the colour",
        ["(make|turn) the light in the {room} {color}", "(change|set) the {room} (light|lamp) to {color}", "?I want {color} light in the {room}"],
        ["The light in the {room} is {color} now.", "{room}: {color} light."],
    )
    def set_light_color(self, room: Room, color: Light) -> dict[str, Any]:
        return {"room": room, "color": color}

    @tool(
        "set_temperature set_thermostat heat_room", "Sets the (temperature|thermostat) of a room.", "set the temperature of a room",
        "room|location: which room; degrees|temperature|target: (wanted|target) temperature in degrees Celsius; until|end_time|stop_at: when the heating (stops|goes back)",
        ["(set|turn) the {room} to {degrees}[ until {until}]", "(heat|warm) the {room} to {degrees}[ until {until}]",
         "?it should be {degrees} in the {room}[ until {until}]", "?I'd like {degrees} in the {room}[, until {until}]", "set the thermostat in the {room} to {degrees}[ until {until}]"],
        ["The {room} is set to {degrees} degrees.", "The thermostat in the {room} is at {degrees} degrees now."],
    )
    def set_temperature(
        self, room: Room, degrees: Annotated[int, whole(15, 26, "How warm?", unit="(degrees|degrees Celsius|°C)")], until: Clock = ""
    ) -> dict[str, Any]:
        self.set("degrees", room, to=degrees)
        return {"room": room, "target": degrees}

    @tool(
        "read_temperature get_room_temperature measure_temperature", "(Measures|Reads) how warm a room is.", "measure the temperature of a room",
        "room|location: which room",
        ["(measure|read|check) the temperature in the {room}", "?how (warm|cold|hot) is (it in |)the {room}", "?(what's|what is) the temperature in the {room}"],
        ["It is {degrees} degrees in the {room}.", "The {room} has {degrees} degrees."],
    )
    def read_temperature(self, room: Room) -> dict[str, Any]:
        return {"degrees": self.get("degrees", room, default=self.number(16, 25, room))}

    @tool(
        "lock_door door_control set_door_lock", "Locks or unlocks a door.", "lock and unlock doors", "door|which|entrance: which door; action|state: lock or unlock",
        ["{action} the {door} door", "?(can somebody|could you) {action} the {door} door", "make sure to {action} the door at the {door}"],
        ["The {door} door: {result}.", "Done, the {door} door is {result}."],
    )
    def lock_door(
        self, door: Annotated[str, enum("front back garage garden balcony", "Which door?")],
        action: Annotated[str, enum("lock unlock", "Lock or unlock?")],
    ) -> dict[str, Any]:
        return {"result": f"{action}ed"}

    @tool(
        "start_device run_appliance start_appliance", "Starts a device in the (house|home), (now|at once) or later.", "start household devices",
        "device|appliance|machine: which one; at|start_time|when: time of day to start; minutes|duration|runtime: how long it runs",
        ["(start|run) the {device}[ at {at}][ for {minutes} minutes]", "(let|have) the {device} run[ for {minutes} minutes][, starting at {at}]", "?the {device} should (start|run)[ at {at}][ for {minutes} minutes]"],
        ["The {device} is {status}.", "I started the {device}: {status}."],
    )
    def start_device(self, device: Device, at: Clock = "", minutes: Minutes = 0) -> dict[str, Any]:
        if self.chance("broken", device) % 9 == 0:
            raise ToolError(f"the {device} does not answer")
        return {"status": f"planned for {at}" if at else "running"}

    @tool(
        "stop_device turn_off_appliance stop_appliance", "Stops a device that runs.", "stop household devices", "device|appliance|machine: which one",
        ["(stop|halt) the {device}", "?the {device} (must|should) stop", "(shut|turn) off the {device}", "make the {device} stop"],
        ["The {device} has stopped.", "I stopped the {device}."],
    )
    def stop_device(self, device: Device) -> dict[str, Any]:
        return {"status": "stopped"}

    @tool(
        "set_blinds move_shutters blinds", "Moves the (blinds|shutters) of a room.", "move blinds", "room|location: which room; closed|percent|position: how far they are closed, in percent (0 is open|)",
        ["(close|move|set|lower) the (blinds|shutters) in the {room} to {closed} percent", "?(blinds|shutters) in the {room} {closed}% closed", "(put|bring) the {room} (blinds|shutters) to {closed}%"],
        ["The blinds in the {room} are at {closed} percent.", "Done: {room}, {closed} percent."],
    )
    def set_blinds(self, room: Room, closed: Percent) -> dict[str, Any]:
        return {"room": room, "closed": closed}

    @tool(
        "set_alarm wake_me create_alarm", "Sets an alarm clock.", "set alarms", "time|at|hour: when it rings; day|date: (on which day|the day)",
        ["(set|make) an alarm for {time}[ on {day}]", "wake me[ on {day}] at {time}", "?I (have to|must) get up at {time}[ on {day}]", "?alarm at {time}[, {day}]"],
        ["The alarm is set for {time}.", "I will wake you at {time}."],
    )
    def set_alarm(self, time: Clock, day: Day = "") -> dict[str, Any]:
        return {"status": "set", "time": time}


Dish = Annotated[str, pool(("lentil soup", "pancakes", "risotto", "goulash", "vegetable curry", "apple pie", "fish tacos", "ratatouille", "pumpkin soup", "carbonara", "paella", "chicken stew", "falafel", "gnocchi", "ramen", "moussaka", "shakshuka", "potato salad", "lasagna", "couscous", "omelette", "waffles", "fried rice", "banana bread", "chili", "cheesecake", "pad thai", "borscht", "quiche", "dumplings"), "Which dish?")]
_FOOD = ("flour", "rice", "eggs", "butter", "onions", "garlic", "tomatoes", "carrots", "milk", "olive oil", "lemons", "potatoes", "cheese", "beans", "mushrooms", "basil", "yeast", "cinnamon", "salmon", "chicken", "spinach", "oats", "honey", "peppers", "apples", "yoghurt", "noodles", "chickpeas", "ginger", "walnuts")
Food = Annotated[str, pool(_FOOD, "Which ingredient?")]
Foods = Annotated[list[str], several(_FOOD, "Which ingredients?")]
Diet = Annotated[str, enum("vegetarian vegan gluten_free low_carb", "Which diet?", {"gluten_free": "(gluten-free|gluten free)", "low_carb": "(low-carb|low carb)"})]
Unit = Annotated[str, enum("grams milliliters cups tablespoons pieces", "In which unit?")]


@world
class Kitchen(World):
    """Recipes, timers, the pantry."""

    name = "kitchen"

    @tool(
        "get_recipe show_recipe recipe_for", "(Returns|Shows) the recipe of a dish.", "show recipes", "dish|meal|name: what to cook; people|servings|portions: for how many",
        ["(show|give|find) me (the|a) recipe for {dish}[ for {people} people]", "?how do (I|you) (make|cook) {dish}[ for {people}]", "?I want to cook {dish}[ for {people} (people|guests)]", "(look up|get) {dish}[, {people} servings]"],
        ["For {dish} you need {ingredients}; it takes {minutes} minutes.", "{dish}: {ingredients}, {minutes} minutes."],
    )
    def get_recipe(self, dish: Dish, people: People = 4) -> dict[str, Any]:
        return {"ingredients": [self.pick(_FOOD, dish, i) for i in range(3)], "minutes": self.number(3, 18, dish) * 5}

    @tool(
        "find_recipes_with recipes_by_ingredients cook_with", "Finds dishes that use (certain|given) ingredients.", "find dishes for ingredients",
        "ingredients|items|have: what (is there|there is to use); diet|restriction: a diet that must be kept",
        ["find (something|a recipe|dishes) with {ingredients}[, {diet}]", "?what can I (cook|make) (with|from|out of) {ingredients}[ that is {diet}]", "?I have {ingredients}: (any ideas|what now)[, but {diet}]"],
        ["You could make {dishes}.", "How about {dishes}?"],
    )
    def find_recipes_with(self, ingredients: Foods, diet: Diet = "") -> dict[str, Any]:
        return {"dishes": [self.pick(("a stew", "a salad", "a curry"), *ingredients), self.pick(("a gratin", "an omelette", "a soup"), diet)]}

    @tool(
        "start_timer set_timer countdown", "Starts a (kitchen timer|countdown).", "start timers", "minutes|duration|length: how long; label|name|for_what: what it is for",
        ["(start|set) a timer (for|of) {minutes} minutes[ for the {label}]", "?timer {minutes} minutes[, {label}]", "remind me in {minutes} minutes[ to look at the {label}]", "count down {minutes} minutes[ for the {label}]"],
        ["The timer runs: {minutes} minutes.", "I will ring in {minutes} minutes."],
    )
    def start_timer(self, minutes: Minutes, label: Dish = "") -> dict[str, Any]:
        return {"status": "running", "minutes": minutes}

    @tool(
        "add_to_shopping_list add_grocery need_to_buy", "Puts something on the shopping list.", "put things on the shopping list", "item|product|food: what to buy; quantity|amount|count: how much",
        ["(put|add) {item} (on|to) (the|my) (shopping|grocery) list[, {quantity} of them]", "?we (need|are out of) {item}[, {quantity} packs]", "(write|note) down {item} for shopping[ ({quantity} times)]"],
        ["{item} is on the list.", "I wrote down {item}."],
    )
    def add_to_shopping_list(self, item: Food, quantity: Count = 1) -> dict[str, Any]:
        found = self.set("list", to=[*self.get("list", default=[]), item])
        return {"list": found}

    @tool(
        "remove_from_shopping_list delete_grocery", "(Removes|Takes) something from the shopping list.", "take things off the shopping list", "item|product|food: what is not needed",
        ["(remove|take|delete|strike) {item} (from|off) (the|my) (shopping|grocery) list", "?we (don't|do not) need {item} any more", "forget the {item}, I have some"],
        ["{item} is off the list.", "I took {item} off."],
    )
    def remove_from_shopping_list(self, item: Food) -> dict[str, Any]:
        left = [each for each in self.get("list", default=[]) if each != item]
        return {"list": self.set("list", to=left)}

    @tool(
        "pantry_stock check_pantry how_much_left", "(Tells|Shows) how much of something is (left|in the pantry).", "check the pantry", "item|food|ingredient: what to look for",
        ["(check|see) (how much|whether any) {item} (is left|we have)", "?(do we have|is there) (any|still some) {item}", "?how much {item} is (there|left)", "look into the pantry for {item}"],
        ["There are {left} portions of {item} left.", "{left} portions of {item}."],
    )
    def pantry_stock(self, item: Food) -> dict[str, Any]:
        return {"left": self.number(0, 9, item)}

    @tool(
        "convert_units kitchen_converter convert_measure", "Converts an amount of an ingredient (between|from one) kitchen unit(s| to another).", "convert kitchen units",
        "amount|value|quantity: how much; unit|from_unit: its unit; to_unit|target|into: (wanted|target) unit",
        ["(convert|change) {amount} {unit} (to|into) {to_unit}", "?(how many|what is) {to_unit} (are in|in|is) {amount} {unit}", "?{amount} {unit} in {to_unit}"],
        ["{amount} {unit} are {result} {to_unit}.", "That is {result} {to_unit}."],
    )
    def convert_units(self, amount: Annotated[int, whole(2, 60, "How much?")], unit: Unit, to_unit: Unit) -> dict[str, Any]:
        size = dict(grams=1.0, milliliters=1.0, cups=240.0, tablespoons=15.0, pieces=50.0)
        return {"result": round(amount * size[unit] / size[to_unit], 2)}

    @tool(
        "preheat_oven heat_oven oven_on", "Preheats the oven.", "preheat the oven", "degrees|temperature|celsius: in degrees Celsius; mode|program: kind of heat",
        ["(preheat|heat) the oven to {degrees}[ (with|on|using) {mode}]", "(get|bring) the oven to {degrees}[, {mode}]", "?the oven should be at {degrees}[ on {mode}]"],
        ["The oven is heating to {degrees} degrees.", "The oven is ready in {minutes} minutes."],
    )
    def preheat_oven(
        self, degrees: Annotated[int, whole(120, 250, "How hot?", step=10, unit="(degrees|degrees Celsius|°C)")],
        mode: Annotated[str, enum("fan grill top_bottom", "Which mode?", {"top_bottom": "top and bottom heat"})] = "fan",
    ) -> dict[str, Any]:
        return {"status": "heating", "minutes": degrees // 15}


Vehicle = Annotated[str, code("V-", 100, 999, "Which vehicle?", "that vehicle")]
Place = City


@world
class Fleet(World):
    """Vehicles, drivers, tours."""

    name = "fleet"

    @tool(
        "locate_vehicle vehicle_position where_is_vehicle", "(Returns|Shows) where a vehicle is.", "locate vehicles", "vehicle|vehicle_id|unit: its number",
        ["(locate|find) (vehicle |truck |van |){vehicle}", "?where is (vehicle |van |){vehicle}( right now| now|)", "?(what's|what is) the position of {vehicle}"],
        ["{vehicle} is near {place}, driving at {speed} km/h.", "{vehicle}: {place}."],
    )
    def locate_vehicle(self, vehicle: Vehicle) -> dict[str, Any]:
        self.known("vehicle", vehicle)
        return {"place": self.pick(("Ulm", "Basel", "Linz", "Metz", "Gent"), vehicle), "speed": self.number(0, 90, vehicle)}

    @tool(
        "assign_driver set_driver", "(Assigns|Gives) a driver to a vehicle.", "assign drivers", "vehicle|vehicle_id|unit: which vehicle; driver|person|name: who drives; day|date: on which day",
        ["(assign|give) (vehicle |){vehicle} to {driver}[ (on|for) {day}]", "(let|have) {driver} drive {vehicle}[ on {day}]", "?{driver} (drives|takes) {vehicle}[ on {day}]", "put {driver} on {vehicle}[ for {day}]"],
        ["{driver} drives {vehicle}.", "{vehicle} belongs to {driver} now."],
    )
    def assign_driver(self, vehicle: Vehicle, driver: Person, day: Day = "") -> dict[str, Any]:
        self.known("vehicle", vehicle)
        self.set("driver", vehicle, to=driver)
        return {"status": "assigned"}

    @tool(
        "find_free_vehicle available_vehicle search_vehicle", "Finds a vehicle that is free.", "find free vehicles", "kind|type|category: of vehicle; city|place|location: where; day|date: when",
        ["find a free {kind} in {city} (on|for) {day}", "?(is there|do we have) a {kind} (free|available) in {city} on {day}", "?I need a {kind} in {city} on {day}", "?which {kind} is (free|available) on {day} in {city}"],
        ["{vehicle} is free.", "You can have {vehicle}."], {"vehicle": Vehicle},
    )
    def find_free_vehicle(
        self, kind: Annotated[str, enum("van truck bus car trailer", "What kind?")], city: Place, day: Day
    ) -> dict[str, Any]:
        found = f"V-{self.number(100, 999, kind, city, day)}"
        self.set("vehicle", found, to=kind)
        return {"vehicle": found}

    @tool(
        "plan_tour create_route plan_route", "Plans a tour of a vehicle (between|from one to another) (cities|city).", "plan tours",
        "vehicle|vehicle_id|unit: which one; start|origin|from_city: where it begins; end|destination|to_city: where it goes; day|date: when",
        ["(plan|create) a (tour|route) for {vehicle} from {start} to {end} on {day}", "?on {day} {vehicle} (goes|has to go|drives) from {start} to {end}", "send {vehicle} from {start} to {end} on {day}"],
        ["The tour is planned: {tour}, {hours} hours.", "{vehicle} drives from {start} to {end} ({tour})."],
    )
    def plan_tour(self, vehicle: Vehicle, start: Place, end: Place, day: Day) -> dict[str, Any]:
        self.known("vehicle", vehicle)
        return {"tour": self.new("T"), "hours": self.number(2, 14, start, end)}

    @tool(
        "fuel_level get_fuel tank_status", "(Tells|Returns) how full the tank of a vehicle is.", "check the fuel of vehicles", "vehicle|vehicle_id|unit: which one",
        ["(check|read) the (fuel|tank) of {vehicle}", "?how much fuel (does|has) {vehicle} (have|got|left)", "?how full is (the tank of |){vehicle}"],
        ["The tank of {vehicle} is at {percent} percent.", "{vehicle} has {percent} percent fuel."],
    )
    def fuel_level(self, vehicle: Vehicle) -> dict[str, Any]:
        return {"percent": self.number(3, 100, vehicle)}

    @tool(
        "schedule_service book_maintenance plan_inspection", "(Books|Schedules) a vehicle for (maintenance|the workshop).", "book maintenance",
        "vehicle|vehicle_id|unit: which one; job|work|service: what is done; day|date: when",
        ["(book|schedule) {vehicle} for (a|an|) {job} on {day}", "?{vehicle} needs (a|an|) {job}, on {day}", "(bring|send) {vehicle} to the workshop on {day} for {job}"],
        ["{vehicle} is booked for {job} on {day}.", "The workshop expects {vehicle} on {day}."],
    )
    def schedule_service(
        self, vehicle: Vehicle, job: Annotated[str, enum("oil_change tyre_change brake_check inspection cleaning", "What should be done?")], day: Day
    ) -> dict[str, Any]:
        return {"status": "booked", "bay": self.number(1, 6, vehicle)}

    @tool(
        "report_breakdown breakdown roadside_help", "Reports that a vehicle broke down and (sends|asks for) help.", "report breakdowns",
        "vehicle|vehicle_id|unit: which one; city|place|location: where it stands; problem|fault: what is wrong",
        ["report a breakdown of {vehicle} (near|in) {city}[, (problem|it is): {problem}]", "?{vehicle} (broke down|stands still|is stuck) (near|in) {city}[ with a {problem}]", "send help to {vehicle} in {city}[ ({problem})]"],
        ["Help is on its way to {city}, it takes {minutes} minutes.", "The breakdown of {vehicle} is reported."],
    )
    def report_breakdown(
        self, vehicle: Vehicle, city: Place, problem: Annotated[str, enum("flat_tyre engine_failure empty_battery accident", "What is wrong?")] = ""
    ) -> dict[str, Any]:
        return {"minutes": self.number(15, 90, vehicle, city)}

    @tool(
        "log_mileage record_kilometres odometer", "Records the (mileage|kilometres) of a vehicle.", "record mileage", "vehicle|vehicle_id|unit: which one; kilometres|mileage|value: what the meter shows",
        ["(log|record|enter) {kilometres} (kilometres|km) for {vehicle}", "?{vehicle} has {kilometres} (km|kilometres) (on the meter|now)", "set the mileage of {vehicle} to {kilometres}"],
        ["{vehicle} has {kilometres} kilometres.", "I recorded {kilometres} kilometres."],
    )
    def log_mileage(self, vehicle: Vehicle, kilometres: Annotated[int, whole(1000, 250000, "How many kilometres?", step=37)]) -> dict[str, Any]:
        return {"status": "recorded"}
