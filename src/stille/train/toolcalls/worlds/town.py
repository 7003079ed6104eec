"""Travel, events and restaurants, a library, sports."""

# fmt: off
# ruff: noqa: E501  (a line is a template)
from typing import Annotated, Any

from stille.train.toolcalls.kinds import (
    Address,
    City,
    Clock,
    Count,
    Day,
    Money,
    Note,
    People,
    Person,
    code,
    enum,
    pool,
    whole,
)
from stille.train.toolcalls.tools import ToolError, World, tool, world

Booking = Annotated[str, code("B", 10000, 99999, "What is the booking number?", "that booking")]
Flight = Annotated[str, code("ST", 100, 999, "Which flight?", "that flight")]


@world
class Travel(World):
    """Flights, trains, hotels."""

    name = "travel"

    @tool(
        "search_flights find_flight flight_search", "(Searches|Finds) flights between two cities.", "search for flights",
        "origin|from_city|departure: where it starts; destination|to_city|arrival: where it (goes|lands); day|date: of departure; passengers|people|travelers: how many (people|seats)",
        ["(search|look) for flights from {origin} to {destination} on {day}[ for {passengers} people]", "(find|get) me a flight from {origin} to {destination}" + " on {day}[ for {passengers}]",
         "?I (want|need|have) to fly to {destination} from {origin} on {day}[ with {passengers} people]", "?are there flights {day} from {origin} to {destination}[ for {passengers} (people|passengers)]"],
        ["Flight {flight} costs {price} euros.", "I found flight {flight}, {price} euros."], {"flight": Flight},
    )
    def search_flights(self, origin: City, destination: City, day: Day, passengers: People = 1) -> dict[str, Any]:
        return {"flight": f"ST{self.number(100, 999, origin, destination, day)}", "price": self.number(49, 700, origin, destination) * passengers}

    @tool(
        "book_flight reserve_flight buy_flight", "Books a flight.", "book flights", "flight|flight_number: its number; passenger|traveler|name: who flies; seat|seat_type: where to sit",
        ["book flight {flight} for {passenger}[, {seat} seat]", "(reserve|get|take) {flight} for {passenger}[ with (a|the) {seat} seat]", "?{passenger} (takes|wants) flight {flight}[, at the {seat}]"],
        ["{passenger} is booked on {flight}: {booking}.", "Booked. The booking number is {booking}."], {"booking": Booking},
    )
    def book_flight(self, flight: Flight, passenger: Person, seat: Annotated[str, enum("window aisle middle", "Which seat?")] = "") -> dict[str, Any]:
        number = self.new("B")
        self.set("booking", number, to=passenger)
        return {"booking": number}

    @tool(
        "book_hotel reserve_room hotel_booking", "(Books|Reserves) a hotel room.", "book hotels",
        "city|location|place: where; arrival|check_in|from_date: first day; nights|stay|duration: how many nights; guests|people: how many people",
        ["(book|reserve|get) (me |)a (hotel|room|hotel room) in {city} from {arrival} for {nights} nights[ for {guests} (people|guests)]", "?I need a hotel in {city}, {nights} nights (starting|from) {arrival}[, {guests} people]",
         "?we (stay|are) {nights} nights in {city} from {arrival} on[, {guests} of us]: book (something|a hotel)"],
        ["Your room in {city} is booked: {booking}.", "Booked under {booking}, {price} euros."], {"booking": Booking},
    )
    def book_hotel(self, city: City, arrival: Day, nights: Count, guests: People = 1) -> dict[str, Any]:
        number = self.new("B")
        self.set("booking", number, to=city)
        return {"booking": number, "price": nights * self.number(60, 220, city)}

    @tool(
        "cancel_booking cancel_reservation", "Cancels a booking.", "cancel bookings", "booking|booking_id|reservation: its number",
        ["cancel (booking |reservation |my booking ){booking}", "?I (can't|cannot) (come|travel), cancel {booking}", "(drop|call off) (the |)reservation {booking}"],
        ["Booking {booking} is cancelled.", "I cancelled {booking}; {refund} euros come back."],
    )
    def cancel_booking(self, booking: Booking) -> dict[str, Any]:
        self.known("booking", booking)
        return {"status": "cancelled", "refund": self.number(10, 300, booking)}

    @tool(
        "change_booking_date move_booking reschedule_trip", "Moves a booking to another day.", "move bookings", "booking|booking_id|reservation: its number; day|new_date|date: the new day",
        ["(move|change|reschedule) (booking |){booking} to {day}", "?can I (come|travel) on {day} with {booking}(| instead)", "(put|shift) {booking} to {day}"],
        ["{booking} is moved to {day}.", "Done, the new day is {day}."],
    )
    def change_booking_date(self, booking: Booking, day: Day) -> dict[str, Any]:
        self.known("booking", booking)
        return {"status": "moved", "fee": self.number(0, 40, booking)}

    @tool(
        "get_weather weather_forecast forecast", "(Returns|Tells) the weather of a city (on|for) a day.", "tell the weather", "city|location|place: where; day|date: when",
        ["(tell me|check|look up|get) the weather in {city}[ (on|for) {day}]", "?(what's|what is|how is) the weather (like |)in {city}[ on {day}]", "?(will it|does it) rain in {city}[ on {day}]", "?how (warm|cold) is it in {city}[ on {day}]", "?do I need an umbrella in {city}[ on {day}]"],
        ["In {city}: {sky}, {degrees} degrees.", "It is {sky} in {city}, {degrees} degrees."],
    )
    def get_weather(self, city: City, day: Day = "") -> dict[str, Any]:
        return {"sky": self.pick(("sunny", "cloudy", "rainy", "windy", "foggy"), city, day), "degrees": self.number(-5, 34, city, day)}

    @tool(
        "train_times next_train train_schedule", "Lists trains between two cities.", "look up trains", "origin|from_city|start: where it starts; destination|to_city|end: where it goes; time|after|departure: not before this time",
        ["(find|look up|show) trains from {origin} to {destination}[ after {time}]", "?when (does|is) the next train from {origin} to {destination}[ after {time}]", "?I need a train to {destination} from {origin}[, (leaving|not before) {time}]"],
        ["There are trains at {times}.", "The next ones leave at {times}."],
    )
    def train_times(self, origin: City, destination: City, time: Clock = "") -> dict[str, Any]:
        hour = int(time[:2]) if time else self.number(6, 18, origin)
        return {"times": [f"{min(23, hour + i):02d}:{self.number(10, 59, origin, destination, i)}" for i in (0, 1)]}

    @tool(
        "rent_car hire_car book_rental_car", "Rents a car.", "rent cars", "city|location|pickup: where; day|date|pickup_date: first day; days|duration|length: for how many days; size|category|class_name: of the car",
        ["(rent|hire|get me) a[ {size}] car in {city} on {day} for {days} days", "?I need a[ {size}] car in {city} from {day}, {days} days"],
        ["The car is reserved: {booking}.", "Reserved under {booking}, {price} euros."], {"booking": Booking},
    )
    def rent_car(self, city: City, day: Day, days: Count, size: Annotated[str, enum("small medium large", "Which size?")] = "medium") -> dict[str, Any]:
        number = self.new("B")
        self.set("booking", number, to=city)
        return {"booking": number, "price": days * self.number(25, 80, city, size)}


Cuisine = Annotated[str, enum("italian indian thai greek french japanese mexican turkish", "Which cuisine?")]
Show = Annotated[str, pool(("The Silver Lake", "Night Train", "Two Brothers", "Paper Moon", "The Last Garden", "Blue Winter", "Echo Park", "Stone Bridge", "Hamlet", "Carmen", "Swan Lake", "The Seagull", "Dune Sea", "Red Harvest", "Open Water", "Letters Home", "The Clockmaker", "High Tide", "Northern Lights", "Second Spring"), "Which show?")]
Restaurant = Annotated[str, pool(("Casa Verde", "Blue Door", "Golden Spoon", "La Terrazza", "Old Mill", "Spice Route", "Harbour Grill", "Little Athens", "Sakura House", "Red Lantern", "The Orchard", "Olive Tree", "Corner Bistro", "Salt and Stone", "Chez Marie", "Green Table"), "Which restaurant?")]


@world
class Leisure(World):
    """Restaurants, cinema, tickets."""

    name = "leisure"

    @tool(
        "find_restaurant search_restaurants restaurant_search", "(Finds|Searches for) restaurants.", "find restaurants", "city|place|location: where; cuisine|food|kind: what they serve; max_price|budget: per person, in euros",
        ["(find|look for) (a|an) {cuisine} restaurant in {city}[ (below|up to) {max_price}]", "?where can (I|we) eat {cuisine} in {city}[ for (at most|less than) {max_price}]", "?(we're|I'm) in {city} and want {cuisine} food[, not above {max_price}]"],
        ["You could try {restaurant}.", "{restaurant} has {stars} stars."], {"restaurant": Restaurant},
    )
    def find_restaurant(self, city: City, cuisine: Cuisine, max_price: Money = 0) -> dict[str, Any]:
        return {"restaurant": self.pick(("Casa Verde", "Blue Door", "Old Mill", "Spice Route", "Red Lantern"), city, cuisine), "stars": self.number(3, 5, city)}

    @tool(
        "book_table reserve_table table_reservation", "(Reserves|Books) a table in a restaurant.", "reserve tables",
        "restaurant|place|name: where; day|date: when; time|hour: at what time; people|guests|party_size: how many",
        ["(book|reserve) a table at {restaurant} on {day} at {time} for {people}", "?we (are|come) {people} (people|) at {restaurant}, {day}, {time}: (reserve|book) a table", "get us a table for {people} at {restaurant} on {day}, {time}",
         "make a reservation at {restaurant} for {people} (people|guests) on {day} at {time}"],
        ["A table for {people} at {restaurant} is reserved.", "Reserved: {restaurant}, {day}, {time}."],
    )
    def book_table(self, restaurant: Restaurant, day: Day, time: Clock, people: People) -> dict[str, Any]:
        if self.chance(restaurant, day, time) % 6 == 0:
            raise ToolError(f"{restaurant} is full at {time}")
        return {"status": "reserved", "table": self.number(1, 30, restaurant)}

    @tool(
        "movie_times showtimes cinema_program", "(Lists|Shows) when a film or show (is on|plays).", "look up showtimes", "title|movie|show: what; city|place: where; day|date: when",
        ["(look up|check|find out) when {title} (is on|plays) in {city}[ on {day}]", "?when (is|can I see) {title} in {city}[ on {day}]", "(show|list) the times of {title} in {city}[ for {day}]"],
        ["{title} is on at {times}.", "You can see it at {times}."],
    )
    def movie_times(self, title: Show, city: City, day: Day = "") -> dict[str, Any]:
        return {"times": [f"{self.number(14, 17, title, city)}:30", f"{self.number(18, 22, title, day)}:00"]}

    @tool(
        "buy_tickets order_tickets get_tickets", "Buys tickets (for a show|).", "buy tickets", "title|show|event: for what; day|date: when; tickets|count|quantity: how many; row|seat_row: where to sit",
        ["(buy|get|order) {tickets} tickets for {title} on {day}[, row {row}]", "?(we|I) need {tickets} tickets for {title}, {day}[, in row {row}]", "book {tickets} seats for {title} on {day}[ in row {row}]"],
        ["You have {tickets} tickets for {title}.", "Bought, {total} euros."],
    )
    def buy_tickets(self, title: Show, day: Day, tickets: Count, row: Annotated[int, whole(1, 25, "Which row?")] = 0) -> dict[str, Any]:
        return {"total": tickets * self.number(8, 60, title), "code": self.new("K")}

    @tool(
        "call_taxi order_taxi get_cab", "(Calls|Orders) a taxi.", "call taxis", "pickup|from_place|start: where it comes to; destination|to_place|goal: where it goes; time|at|when: when it comes",
        ["(call|order|get) (me |)a (taxi|cab) from {pickup} to {destination}[ at {time}]", "?I need a (taxi|cab) to {destination}, I'm at {pickup}[, at {time}]"],
        ["The taxi comes in {minutes} minutes.", "A taxi to {destination} is on its way."],
    )
    def call_taxi(self, pickup: Address, destination: Address, time: Clock = "") -> dict[str, Any]:
        return {"minutes": self.number(2, 15, pickup)}

    @tool(
        "write_postcard send_postcard", "Sends a (real |)postcard.", "send postcards", "recipient|to|person: who gets it; text|message|content: what it says; city|motif: whose picture is on it",
        ["send {recipient} a postcard[ from {city}] saying \"{text}\"", "(write|mail) a postcard[ of {city}] to {recipient}: {text}"],
        ["The postcard to {recipient} is on its way.", "Sent to {recipient}."],
    )
    def write_postcard(self, recipient: Person, text: Note, city: City = "") -> dict[str, Any]:
        return {"status": "sent", "days": self.number(2, 9, recipient)}


Title = Annotated[str, pool(("The Old Lighthouse", "A Year in Bread", "Silent Rivers", "Notes on Gravity", "The Glass Orchard", "Winter Maps", "How Birds Think", "The Long Field", "Salt Roads", "Learning to Knit", "Seven Harbours", "The Honest Clock", "Deep Forests", "A Short History of Tea", "The Copper Key", "Under the Bridge", "Stars for Beginners", "The Quiet Engine", "Letters to Ada", "Island Summer", "The Bee Garden", "Night Ferries", "The Paper Boat", "Rules of Chess", "Mountain Light", "The Violin Maker"), "Which book?")]
Member = Annotated[str, code("M", 1000, 9999, "What is the member number?", "")]
Copy = Annotated[str, code("LB-", 1000, 9999, "Which copy?", "that copy")]
Genre = Annotated[str, enum("crime fantasy history science poetry travel biography", "Which genre?")]


@world
class Library(World):
    """Books, loans, rooms."""

    name = "library"

    @tool(
        "search_catalog find_book book_search", "(Searches|Looks in) the catalogue for a book.", "search for books", "title|book|name: of the book; author|writer|by: who wrote it",
        ["(search|look) for (the book |){title}[ by {author}]", "?do you have {title}[ by {author}]", "(find|look up) {title}[, written by {author}]", "?is {title}[ by {author}] (in|available)"],
        ["{title} is there: copy {copy}, shelf {shelf}.", "Yes, copy {copy} on shelf {shelf}."], {"copy": Copy},
    )
    def search_catalog(self, title: Title, author: Person = "") -> dict[str, Any]:
        self.known("book", title, of=9)
        return {"copy": f"LB-{self.number(1000, 9999, title)}", "shelf": self.number(1, 60, title)}

    @tool(
        "borrow_book check_out lend_book", "Lends a copy to a member.", "lend books", "copy|copy_id|item: which copy; member|member_id|card: who borrows it",
        ["(borrow|check out|lend) {copy} (to|for|on card) {member}", "?member {member} (takes|wants|borrows) {copy}", "put {copy} on {member}"],
        ["{copy} is lent to {member} until {due}.", "Lent, due {due}."],
    )
    def borrow_book(self, copy: Copy, member: Member) -> dict[str, Any]:
        return {"due": f"2026-0{self.number(1, 9, copy)}-{self.number(10, 28, member)}"}

    @tool(
        "return_book check_in give_back", "Takes a copy back.", "take books back", "copy|copy_id|item: which copy",
        ["(return|check in|take back) {copy}", "?{copy} (is back|was returned|came back)", "?I (bring|brought) {copy} back"],
        ["{copy} is back.", "Thank you, {copy} is checked in."],
    )
    def return_book(self, copy: Copy) -> dict[str, Any]:
        return {"status": "returned", "fee": self.number(0, 3, copy)}

    @tool(
        "renew_loan extend_loan prolong", "(Extends|Renews) a loan.", "extend loans", "copy|copy_id|item: which copy; weeks|duration|extra_weeks: by how many weeks",
        ["(extend|renew|prolong) {copy}[ by {weeks} weeks]", "?can I keep {copy} (longer|a little longer)[, {weeks} weeks]", "?I need {copy} some more time[, {weeks} weeks]"],
        ["{copy} is extended.", "You can keep {copy} {more} weeks longer."],
    )
    def renew_loan(self, copy: Copy, weeks: Annotated[int, whole(1, 6, "By how many weeks?")] = 2) -> dict[str, Any]:
        return {"more": weeks}

    @tool(
        "reserve_book place_hold put_on_hold", "Reserves a book that is (lent|out).", "reserve books", "title|book|name: which book; member|member_id|card: for whom",
        ["(reserve|hold) {title} for {member}", "?member {member} (wants|is waiting for) {title}", "put {title} on hold for {member}"],
        ["{title} is reserved for {member}.", "You are number {place} in the queue."],
    )
    def reserve_book(self, title: Title, member: Member) -> dict[str, Any]:
        return {"place": self.number(1, 8, title)}

    @tool(
        "recommend_books suggest_reading reading_tips", "Suggests books of a genre.", "suggest books", "genre|kind|category: which kind; count|limit|number: how many",
        ["(suggest|recommend)[ {count}] {genre} books", "?what (should I read|can I read)(, something with| in) {genre}[, {count} titles]", "?I (like|love) {genre}: any[ {count}] (tips|suggestions)"],
        ["How about {titles}?", "I can recommend {titles}."],
    )
    def recommend_books(self, genre: Genre, count: Count = 2) -> dict[str, Any]:
        return {"titles": [self.pick(("Silent Rivers", "Winter Maps", "Salt Roads"), genre), self.pick(("Deep Forests", "Island Summer"), genre, count)]}

    @tool(
        "book_study_room reserve_room_library study_room", "Books a study room.", "book study rooms", "day|date: when; time|start|from_time: from when; hours|duration|length: how long; people|seats: how many",
        ["(book|reserve) a study room on {day} at {time} for {hours} hours[, {people} people]", "?I need a (study |)room {day} from {time}, {hours} hours[, {people} of us]"],
        ["Room {room} is yours.", "You have room {room} from {time}."],
    )
    def book_study_room(self, day: Day, time: Clock, hours: Annotated[int, whole(1, 6, "For how many hours?")], people: People = 1) -> dict[str, Any]:
        return {"room": self.pick("ABCDEF", day, time)}

    @tool(
        "check_fees open_fees account_fees", "(Shows|Tells) what a member owes.", "check fees", "member|member_id|card: whose fees",
        ["(check|look up) the fees of (member |){member}", "?how much (does|do I owe with card) {member}", "?does {member} owe (us |)anything", "?are there (open |)fees on {member}"],
        ["{member} owes {fees} euros.", "The open fees are {fees} euros."],
    )
    def check_fees(self, member: Member) -> dict[str, Any]:
        return {"fees": self.number(0, 25, member)}


Team = Annotated[str, pool(("Red Foxes", "Harbour United", "Northern Owls", "River City", "Blue Comets", "Iron Bears", "Lakeside", "Silver Hawks", "Old Town", "Mountain Lions", "Sea Dragons", "Storm", "Valley Rangers", "Central Stars", "Forest Wolves", "Coast Runners", "Thunder", "Royals"), "Which team?")]


@world
class Sports(World):
    """Matches, tables, courts."""

    name = "sports"

    @tool(
        "match_result get_score final_score", "(Returns|Tells) how a match ended.", "tell results", "home|team_a|team1: the team at home; away|team_b|team2: the (guests|other team)",
        ["(look up|tell me) the (score|result) of {home} against {away}", "?how did {home} (play|do) against {away}", "?who won, {home} or {away}", "?(what was|what's) the result of {home} vs {away}"],
        ["{home} against {away} ended {score}.", "The score was {score}."],
    )
    def match_result(self, home: Team, away: Team) -> dict[str, Any]:
        return {"score": f"{self.number(0, 5, home, away)}:{self.number(0, 4, away)}"}

    @tool(
        "next_match upcoming_game fixture", "(Tells|Returns) when a team plays next.", "tell when a team plays", "team|club|name: which team",
        ["(tell me|find out|check) when {team} (plays|play) next", "?when does {team} play (next|again)", "?what is the next (game|match) of {team}"],
        ["{team} play against {opponent} on {day}.", "The next match is on {day}, against {opponent}."],
    )
    def next_match(self, team: Team) -> dict[str, Any]:
        return {"opponent": self.pick(("Old Town", "Storm", "Thunder", "Lakeside"), team), "day": self.pick(("Saturday", "Sunday", "Friday"), team)}

    @tool(
        "league_table standings get_ranking", "(Shows|Returns) the (table|standings) of a league.", "show league tables", "league|division|competition: which league; top|limit|places: how many places",
        ["(show|get) (me |)the[ top {top} of the] {league} (table|standings|league)", "?who leads the {league} league[, top {top}]", "?(what's|what is) the table of the {league} league[, first {top} places]"],
        ["At the top: {teams}.", "The best are {teams}."],
    )
    def league_table(self, league: Annotated[str, enum("first second women youth regional", "Which league?")], top: Count = 3) -> dict[str, Any]:
        return {"teams": [self.pick(("Red Foxes", "Iron Bears"), league), self.pick(("River City", "Blue Comets"), league, top)]}

    @tool(
        "book_court reserve_court court_booking", "Books a court.", "book courts", "sport|game|kind: which one; day|date: when; time|hour|start: at what time; minutes|duration: how long",
        ["(book|reserve) a {sport} court on {day} at {time}[ for {minutes} minutes]", "?(we|I) want to play {sport} on {day} at {time}[, {minutes} minutes]", "get a court for {sport}, {day}, {time}[, for {minutes} minutes]"],
        ["Court {court} is booked.", "You play on court {court}."],
    )
    def book_court(
        self, sport: Annotated[str, enum("tennis squash badminton padel volleyball", "Which sport?")], day: Day, time: Clock,
        minutes: Annotated[int, whole(30, 120, "How long?", step=30)] = 60,
    ) -> dict[str, Any]:
        if self.chance(sport, day, time) % 7 == 0:
            raise ToolError("all courts are taken at that time")
        return {"court": self.number(1, 8, sport, day)}

    @tool(
        "sign_up_player register_player add_player", "Registers a player with a team.", "register players", "player|person|name: who; team|club: which team; number|shirt|jersey: on the shirt",
        ["(sign up|register|add) {player} (for|with|to) {team}[ with number {number}]", "?{player} (joins|plays for) {team} (now|from now on)[, number {number}]"],
        ["{player} plays for {team} now.", "{player} is registered."],
    )
    def sign_up_player(self, player: Person, team: Team, number: Annotated[int, whole(1, 99, "Which number?")] = 0) -> dict[str, Any]:
        self.set("team", player, to=team)
        return {"status": "registered"}

    @tool(
        "follow_team subscribe_team get_alerts", "Sends (news|messages) about a team from now on.", "follow teams", "team|club|name: which one; events|kind|what: what is told",
        ["(follow|subscribe to) {team}[, only {events}]", "(tell|notify) me about {team}[, just {events}]", "?I want (news|alerts) (about|on) {team}[, {events} only]"],
        ["You follow {team} now.", "I will keep you posted about {team}."],
    )
    def follow_team(self, team: Team, events: Annotated[str, enum("goals results transfers", "What about it?")] = "results") -> dict[str, Any]:
        return {"status": "following"}

    @tool(
        "player_stats player_statistics get_stats", "(Returns|Shows) statistics of a player.", "show statistics of players", "player|person|name: who; season|year: which year",
        ["(show|get|look up) the (stats|statistics|numbers) of {player}[ (for|in) {season}]", "?how many goals (did|has) {player} (score|scored)[ in {season}]", "?how good (is|was) {player}[ in {season}]"],
        ["{player} has {goals} goals in {games} games.", "{goals} goals, {games} games."],
    )
    def player_stats(self, player: Person, season: Annotated[int, whole(2012, 2027, "Which season?")] = 0) -> dict[str, Any]:
        return {"goals": self.number(0, 31, player, season), "games": self.number(5, 38, player)}
