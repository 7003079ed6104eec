"""A clinic, music, fitness, a school, a post office."""

# fmt: off
# ruff: noqa: E501  (a line is a template)
from typing import Annotated, Any

from stille.train.toolcalls.kinds import (
    Address,
    Birthday,
    City,
    Clock,
    Count,
    Day,
    FullName,
    Minutes,
    Note,
    Percent,
    Person,
    code,
    enum,
    pool,
    whole,
)
from stille.train.toolcalls.tools import ToolError, World, tool, world

Patient = Annotated[str, code("PT", 10000, 99999, "What is the patient number?", "that patient")]
Visit = Annotated[str, code("AP-", 1000, 9999, "Which appointment?", "that appointment")]
Field = Annotated[str, enum("dentist dermatology cardiology pediatrics orthopedics radiology", "Which department?")]
Drug = Annotated[str, pool(("ibuprofen", "paracetamol", "amoxicillin", "metformin", "cetirizine", "omeprazole", "aspirin", "insulin", "lisinopril", "atorvastatin", "salbutamol", "levothyroxine", "ramipril", "bisoprolol"), "Which medicine?")]


@world
class Clinic(World):
    """Patients, appointments, prescriptions."""

    name = "clinic"

    @tool(
        "find_patient search_patient patient_lookup", "(Finds|Looks up) a patient.", "look up patients", "name|full_name|person: first and last name; birthday|birth_date|born: date of birth",
        ["(find|look up|search for) the patient {name}[, born {birthday}]", "?what is the patient number of {name}[, born on {birthday}]", "(get|open) the file of {name}[, born {birthday}]"],
        ["{name} is patient {patient}.", "The patient number is {patient}."], {"patient": Patient},
    )
    def find_patient(self, name: FullName, birthday: Birthday = "") -> dict[str, Any]:
        self.known("patient", name, of=9)
        return {"patient": f"PT{self.number(10000, 99999, name)}"}

    @tool(
        "book_appointment make_appointment schedule_visit", "(Books|Makes) an appointment for a patient.", "book appointments", "patient|patient_id|patient_number: who comes; field|department|specialty: where; day|date: when; time|hour|start: at what time",
        ["(book|make) an appointment for {patient} (in|at) {field} on {day} at {time}", "?{patient} (needs to see|has to go to) {field} on {day}, {time}", "schedule {patient} with {field}: {day}, {time}"],
        ["The appointment has the number {visit}.", "Booked: {visit}."], {"visit": Visit},
    )
    def book_appointment(self, patient: Patient, field: Field, day: Day, time: Clock) -> dict[str, Any]:
        if self.chance(field, day, time) % 7 == 0:
            raise ToolError(f"{field} is fully booked at {time}")
        number = self.new("AP-")
        self.set("visit", number, to=patient)
        return {"visit": number}

    @tool(
        "cancel_appointment delete_visit", "Cancels an appointment of a patient.", "cancel appointments", "visit|appointment|appointment_id: which one",
        ["(cancel|delete) (the appointment |appointment |){visit}", "?the patient cannot come, cancel {visit}", "take {visit} out of the book"],
        ["{visit} is cancelled.", "I cancelled {visit}."],
    )
    def cancel_appointment(self, visit: Visit) -> dict[str, Any]:
        self.known("visit", visit)
        return {"status": "cancelled"}

    @tool(
        "prescribe_medicine write_prescription new_prescription", "Writes a prescription.", "write prescriptions", "patient|patient_id|patient_number: for whom; drug|medicine|medication: what; dose|milligrams|mg: in milligrams; times|per_day|frequency: how often a day",
        ["prescribe {patient} {dose} mg of {drug}[, {times} times a day]", "(write|make) a prescription for {patient}: {drug}, {dose} mg[, {times} times (daily|a day)]", "?{patient} (gets|needs) {drug} {dose} mg[ {times} times a day]"],
        ["{drug} is prescribed for {patient}.", "The prescription is ready."],
    )
    def prescribe_medicine(
        self, patient: Patient, drug: Drug, dose: Annotated[int, whole(50, 800, "How many milligrams?", step=50)], times: Annotated[int, whole(1, 4, "How often a day?")] = 1
    ) -> dict[str, Any]:
        self.known("patient", patient)
        return {"prescription": self.new("RX")}

    @tool(
        "lab_results get_lab_values test_results", "(Returns|Shows) a lab value of a patient.", "show lab results", "patient|patient_id|patient_number: whose; test|value|parameter: which test",
        ["(show|get|look up) the {test} (of|for) {patient}", "?(what's|what is) the {test} of {patient}", "?how is the {test} of {patient}"],
        ["The {test} of {patient} is {value}.", "It is {value}."],
    )
    def lab_results(self, patient: Patient, test: Annotated[str, enum("glucose cholesterol iron creatinine hemoglobin", "Which test?")]) -> dict[str, Any]:
        self.known("patient", patient)
        return {"value": self.number(4, 240, patient, test)}

    @tool(
        "record_vitals enter_blood_pressure log_vitals", "Records blood pressure and pulse.", "record vitals", "patient|patient_id|patient_number: whose; upper|systolic: first number of the blood pressure; lower|diastolic: second number; pulse|heart_rate|bpm: beats a minute",
        ["(record|enter) (a blood pressure of |){upper} over {lower} for {patient}[, pulse {pulse}]", "?{patient} has {upper}/{lower}[ and a pulse of {pulse}]"],
        ["{upper}/{lower} is recorded.", "Saved for {patient}."],
    )
    def record_vitals(
        self, patient: Patient, upper: Annotated[int, whole(95, 180, "What is the upper value?")], lower: Annotated[int, whole(55, 110, "What is the lower value?")],
        pulse: Annotated[int, whole(45, 130, "What is the pulse?")] = 0,
    ) -> dict[str, Any]:
        return {"status": "recorded"}

    @tool(
        "free_slots available_times open_appointments", "Lists free appointments.", "list free appointments", "field|department|specialty: where; day|date: when",
        ["(list|show|find) free (appointments|slots) (in|at) {field} on {day}", "?when is {field} free on {day}", "?is there (anything|a slot) in {field} on {day}"],
        ["Free: {times}.", "{field} is free at {times}."],
    )
    def free_slots(self, field: Field, day: Day) -> dict[str, Any]:
        return {"times": [f"{self.number(8, 11, field, day)}:15", f"{self.number(13, 17, day)}:45"]}

    @tool(
        "admit_patient assign_bed hospital_bed", "Admits a patient to a ward.", "admit patients", "patient|patient_id|patient_number: who; ward|station|unit: which ward (A to F|by its letter)",
        ["admit {patient} to ward {ward}", "?{patient} (goes|comes) to ward {ward}", "(give|find) {patient} a bed on ward {ward}"],
        ["{patient} is in bed {bed}.", "Admitted, bed {bed}."],
    )
    def admit_patient(self, patient: Patient, ward: Annotated[str, enum("A B C D E F", "Which ward?")]) -> dict[str, Any]:
        self.known("patient", patient)
        return {"bed": f"{ward}{self.number(1, 40, patient)}"}


Song = Annotated[str, pool(("Paper Planes", "Midnight Rain", "Golden Hour", "River Song", "Broken Radio", "Summer Dust", "Neon Sky", "Slow Dance", "Wild Geese", "Glass Heart", "Morning Bell", "City of Snow", "Tin Roof", "Long Way Home", "Silver Coin", "Drifting", "Cold Coffee", "Lanterns", "Yellow Door", "First Light", "Two Rivers", "Heavy Boots"), "Which song?")]
Mood = Annotated[str, enum("calm happy sad energetic romantic focus", "Which mood?")]
Speaker = Annotated[str, enum("kitchen bedroom living_room bathroom headphones", "On which speaker?", {"living_room": "(living room|lounge)"})]
Playlist = Annotated[str, code("PL", 100, 999, "Which playlist?", "that playlist")]


@world
class Music(World):
    """Songs, playlists, speakers."""

    name = "music"

    @tool(
        "play_song play_track start_song", "Plays a song.", "play songs", "title|song|track: which one; artist|by|singer: who sings; speaker|device|where: where it plays",
        ["play {title}[ by {artist}][ (in|on) the {speaker}]", "?I (want|would like) to hear {title}[ by {artist}][ (in|on) the {speaker}]", "(put|turn) on {title}[ by {artist}][ in the {speaker}]"],
        ["{title} is playing.", "Now playing {title}."],
    )
    def play_song(self, title: Song, artist: Person = "", speaker: Speaker = "") -> dict[str, Any]:
        self.known("song", title, of=11)
        return {"status": "playing"}

    @tool(
        "set_volume change_volume volume", "Sets how loud a speaker is.", "set the volume", "percent|level|volume: how loud; speaker|device|where: which one",
        ["(set|turn) the volume to {percent} percent[ (in|on) the {speaker}]", "(make|turn) it {percent}% loud[ in the {speaker}]", "?volume {percent}%[, {speaker}]"],
        ["The volume is at {percent} percent.", "Volume {percent}."],
    )
    def set_volume(self, percent: Percent, speaker: Speaker = "") -> dict[str, Any]:
        return {"volume": percent}

    @tool(
        "create_playlist new_playlist make_playlist", "(Creates|Makes) a playlist for a mood.", "make playlists", "mood|feeling|style: what it is like; songs|count|length: how many songs",
        ["(make|create) a {mood} playlist[ (with|of) {songs} songs]", "?I (want|need) {mood} songs in a new playlist[, {songs} of them]", "(put together|compile)[ {songs}] {mood} songs as a playlist"],
        ["The playlist {playlist} is ready.", "I made {playlist}."], {"playlist": Playlist},
    )
    def create_playlist(self, mood: Mood, songs: Count = 10) -> dict[str, Any]:
        number = self.new("PL")
        self.set("playlist", number, to=mood)
        return {"playlist": number}

    @tool(
        "add_song_to_playlist playlist_add add_track", "Adds a song to a playlist.", "add songs to playlists", "title|song|track: which song; playlist|playlist_id|list: which playlist",
        ["(add|put) {title} (to|on|into) {playlist}", "?{title} (belongs|should be) (in|on) {playlist}"],
        ["{title} is on {playlist} now.", "Added {title}."],
    )
    def add_song_to_playlist(self, title: Song, playlist: Playlist) -> dict[str, Any]:
        self.known("playlist", playlist)
        return {"songs": self.number(2, 40, playlist)}

    @tool(
        "play_playlist start_playlist shuffle_list", "Plays a playlist.", "play playlists", "playlist|playlist_id|list: which one; speaker|device|where: where it plays",
        ["(play|start) (the playlist |playlist |){playlist}[ (in|on) the {speaker}]", "(start|run) {playlist}[ in the {speaker}]", "?I (want|'d like) to hear {playlist}[ in the {speaker}]"],
        ["{playlist} is playing.", "Playing {playlist}."],
    )
    def play_playlist(self, playlist: Playlist, speaker: Speaker = "") -> dict[str, Any]:
        self.known("playlist", playlist)
        return {"status": "playing"}

    @tool(
        "find_concerts concert_search upcoming_concerts", "(Finds|Lists) concerts in a city.", "find concerts", "city|place|location: where; day|date: when; genre|style|music: what kind",
        ["(find|look for)[ {genre}] concerts in {city}[ on {day}]", "?(are there|any)[ {genre}] concerts in {city}[ on {day}]", "?who plays in {city}[ on {day}][, I like {genre}]"],
        ["There is {concert} at {time}.", "{concert}, {time}."],
    )
    def find_concerts(self, city: City, day: Day = "", genre: Annotated[str, enum("jazz rock classical folk electronic", "Which genre?")] = "") -> dict[str, Any]:
        return {"concert": self.pick(("The Quiet Engine", "Nora and the Owls", "City Strings"), city, genre), "time": f"{self.number(18, 21, city)}:00"}

    @tool(
        "stop_music pause_music pause_playback", "Stops the music.", "stop the music", "speaker|device|where: which speaker",
        ["(stop|pause) the music (in|on) the {speaker}", "?(silence|no music) in the {speaker}(| please)", "(be|make it) quiet in the {speaker}"],
        ["It is quiet in the {speaker}.", "The music has stopped."],
    )
    def stop_music(self, speaker: Speaker) -> dict[str, Any]:
        return {"status": "stopped"}


Sport = Annotated[str, enum("running cycling swimming yoga rowing hiking boxing", "Which sport?")]
Plan = Annotated[str, code("TP", 100, 999, "Which plan?", "that plan")]


@world
class Fitness(World):
    """Training, food, weight."""

    name = "fitness"

    @tool(
        "log_workout record_training add_workout", "Records a workout.", "record workouts", "sport|activity|kind: which one; minutes|duration|length: how long; distance|kilometres|km: in kilometres; day|date: when",
        ["(log|record) {minutes} minutes of {sport}[, {distance} km][ on {day}]", "?I (did|had) {minutes} minutes of {sport}[ and {distance} kilometres][ on {day}]", "(add|enter) {sport}, {minutes} minutes[, {distance} km][, {day}]"],
        ["{minutes} minutes of {sport} are recorded.", "Well done, {calories} calories."],
    )
    def log_workout(self, sport: Sport, minutes: Minutes, distance: Annotated[int, whole(2, 40, "How many kilometres?")] = 0, day: Day = "") -> dict[str, Any]:
        return {"calories": minutes * self.number(4, 12, sport)}

    @tool(
        "log_weight enter_weight record_weight", "Records body weight.", "record weight", "kilograms|weight|kg: how much; day|date: when",
        ["(log|record|enter) (my weight: |a weight of ){kilograms} kilos[ (for|on) {day}]", "?I (weigh|weighed) {kilograms} kg[ on {day}]"],
        ["{kilograms} kilos are recorded.", "That is {change} kilos since last time."],
    )
    def log_weight(self, kilograms: Annotated[int, whole(48, 120, "How many kilos?")], day: Day = "") -> dict[str, Any]:
        return {"change": self.number(-3, 3, kilograms)}

    @tool(
        "log_meal record_food add_meal", "Records what somebody ate.", "record meals", "meal|when|meal_type: which meal; calories|kcal|energy: how many calories; note|text|food: what it was",
        ["(log|record) {calories} calories for {meal}[: {note}]", "?{meal} had {calories} (kcal|calories)[, {note}]", "(enter|add) {meal}, {calories} kcal[ (note: {note})]"],
        ["{meal} is recorded.", "You have {left} calories left."],
    )
    def log_meal(
        self, meal: Annotated[str, enum("breakfast lunch dinner snack", "Which meal?")], calories: Annotated[int, whole(80, 1400, "How many calories?", step=10)], note: Note = ""
    ) -> dict[str, Any]:
        eaten = self.set("eaten", to=self.get("eaten", default=0) + calories)
        return {"left": max(0, 2200 - eaten)}

    @tool(
        "training_plan create_plan make_training_plan", "Makes a training plan.", "make training plans", "sport|activity|kind: which one; weeks|duration|length: how many weeks; per_week|sessions|days_per_week: how often a week",
        ["(make|create|plan) a {sport} plan for {weeks} weeks, {per_week} times a week", "?I want to train {sport} {per_week} times a week for {weeks} weeks"],
        ["Your plan is {plan}.", "The plan {plan} is ready."], {"plan": Plan},
    )
    def training_plan(self, sport: Sport, weeks: Count, per_week: Annotated[int, whole(1, 7, "How often a week?")]) -> dict[str, Any]:
        number = self.new("TP")
        self.set("plan", number, to=sport)
        return {"plan": number}

    @tool(
        "share_plan send_plan give_plan", "Sends a training plan to somebody.", "share training plans", "plan|plan_id|program: which one; person|to|recipient: who gets it",
        ["send {plan} to {person}", "share {plan} with {person}", "?{person} (wants|should get) {plan}"],
        ["{person} has the plan.", "I sent {plan} to {person}."],
    )
    def share_plan(self, plan: Plan, person: Person) -> dict[str, Any]:
        self.known("plan", plan)
        return {"status": "sent"}

    @tool(
        "set_goal daily_goal change_goal", "Sets a daily goal.", "set goals", "kind|goal|what: of goal; amount|value|target: how much",
        ["(set|change) my (daily |){kind} goal to {amount}", "?I want {amount} {kind} (a day|every day)", "make {amount} {kind} my (daily |)goal"],
        ["Your goal is {amount} {kind} a day.", "Goal set."],
    )
    def set_goal(self, kind: Annotated[str, enum("steps calories minutes glasses", "Which goal?")], amount: Annotated[int, whole(2, 9000, "How many?", step=7)]) -> dict[str, Any]:
        return {"status": "set"}

    @tool(
        "weekly_summary progress_report week_overview", "Sums up a week of training.", "sum up your week", "day|week_of|date: any day of that week",
        ["(sum up|summarise) the week of {day}", "?how (was|is) my (training|week) (around|of) {day}", "(show|give) me the report of the week with {day}"],
        ["You did {workouts} workouts and {minutes} minutes.", "{workouts} workouts, {minutes} minutes."],
    )
    def weekly_summary(self, day: Day) -> dict[str, Any]:
        return {"workouts": self.number(0, 7, day), "minutes": self.number(20, 500, day)}

    @tool(
        "book_class join_class reserve_class", "Books a place in a class.", "book classes", "sport|activity|kind: which one; day|date: when; time|hour|start: at what time",
        ["(book|reserve) (me |)a place in {sport} on {day} at {time}", "?I (join|come to) {sport} on {day} at {time}", "sign me up for {sport}, {day}, {time}"],
        ["You have a place in {sport}.", "See you at {time}."],
    )
    def book_class(self, sport: Sport, day: Day, time: Clock) -> dict[str, Any]:
        if self.chance(sport, day, time) % 6 == 0:
            raise ToolError("the class is full")
        return {"place": self.number(1, 20, sport)}


Parcel = Annotated[str, code("PK", 100000, 999999, "What is the number of the parcel?", "that parcel")]


@world
class Post(World):
    """Parcels and letters."""

    name = "post"

    @tool(
        "send_parcel ship_package create_shipment", "Sends a parcel.", "send parcels", "recipient|to|name: who gets it; address|street|destination: where to; weight|kilos|kg: in kilograms",
        ["(send|ship) a parcel of {weight} kg to {recipient}, {address}", "?I have a {weight} kilo (parcel|package) for {recipient} at {address}", "(mail|ship) {weight} kg to {recipient}, {address}"],
        ["The parcel has the number {parcel}.", "Sent: {parcel}, {price} euros."], {"parcel": Parcel},
    )
    def send_parcel(self, recipient: FullName, address: Address, weight: Annotated[int, whole(1, 30, "How many kilos?")]) -> dict[str, Any]:
        number = self.new("PK")
        self.set("parcel", number, to="accepted")
        return {"parcel": number, "price": 4 + weight}

    @tool(
        "track_parcel parcel_status where_is_parcel", "(Tells|Shows) where a parcel is.", "track parcels", "parcel|tracking_number|parcel_id: which one",
        ["(track|find|trace) (parcel |){parcel}", "?where is (the parcel |my package |){parcel}", "?when (does|will) {parcel} (arrive|come)"],
        ["{parcel} is {status}.", "It is {status}, {days} days to go."],
    )
    def track_parcel(self, parcel: Parcel) -> dict[str, Any]:
        self.known("parcel", parcel)
        return {"status": self.get("parcel", parcel, default=self.pick(("in Basel", "with the courier", "at customs"), parcel)), "days": self.number(1, 5, parcel)}

    @tool(
        "redirect_parcel change_delivery forward_parcel", "Sends a parcel to another address.", "redirect parcels", "parcel|tracking_number|parcel_id: which one; address|street|new_address: where to",
        ["(redirect|forward|send) {parcel} to {address}", "?I'm not at home, {parcel} should go to {address}"],
        ["{parcel} goes to {address}.", "Redirected."],
    )
    def redirect_parcel(self, parcel: Parcel, address: Address) -> dict[str, Any]:
        self.known("parcel", parcel)
        return {"status": "redirected"}

    @tool(
        "hold_mail stop_delivery vacation_hold", "Keeps all mail back for some time.", "hold your mail", "start|from_date|first_day: first day; days|duration|length: how many days",
        ["(hold|keep) my mail from {start} for {days} days", "?I'm away {days} days from {start}, (hold|keep) my mail", "no (mail|letters) for {days} days (from|starting) {start}"],
        ["Your mail waits for {days} days.", "Done, from {start}."],
    )
    def hold_mail(self, start: Day, days: Count) -> dict[str, Any]:
        return {"status": "held"}

    @tool(
        "postage_price shipping_cost calculate_postage", "(Calculates|Tells) what a parcel costs.", "calculate postage", "weight|kilos|kg: in kilograms; city|destination|to: where to; service|speed|kind: how fast",
        ["(calculate|tell me) the postage for {weight} kg to {city}[, {service}]", "?how much is a {weight} kilo parcel to {city}[ by {service}]", "?{weight} kg to {city}[, {service}]: how much"],
        ["That is {price} euros.", "It costs {price} euros."],
    )
    def postage_price(self, weight: Annotated[int, whole(1, 30, "How many kilos?")], city: City, service: Annotated[str, enum("standard express overnight", "How fast?")] = "standard") -> dict[str, Any]:
        return {"price": weight + self.number(3, 9, city) + dict(standard=0, express=6, overnight=14)[service]}

    @tool(
        "nearest_branch find_post_office post_office", "Finds the nearest post office.", "find post offices", "address|street|near: near where; open_at|time|at: open at this time",
        ["find (a|the nearest) post office near {address}[ that is open at {open_at}]", "?where is (a|the next) post office near {address}[, open at {open_at}]"],
        ["Go to {branch}.", "The nearest one is at {branch}."],
    )
    def nearest_branch(self, address: Address, open_at: Clock = "") -> dict[str, Any]:
        return {"branch": f"{self.number(1, 90, address)} {self.pick(('Main Street', 'Post Lane', 'Square'), address)}"}

    @tool(
        "complain_about_parcel file_complaint parcel_complaint", "Files a complaint about a parcel.", "file complaints", "parcel|tracking_number|parcel_id: which one; problem|reason|what: what is wrong",
        ["complain about {parcel}: {problem}", "?{parcel} (is|was|arrived) {problem}, I want to complain", "(file|make) a complaint, {parcel} is {problem}"],
        ["The complaint has the number {complaint}.", "Filed under {complaint}."],
    )
    def complain_about_parcel(self, parcel: Parcel, problem: Annotated[str, enum("damaged lost late opened", "What is wrong?")]) -> dict[str, Any]:
        return {"complaint": self.new("CP")}

    @tool(
        "sms_when_delivered notify_delivery delivery_alert", "Tells somebody when a parcel arrives.", "announce deliveries", "parcel|tracking_number|parcel_id: which one; person|who|notify: who is told",
        ["(tell|inform|notify) {person} when {parcel} (arrives|is there)", "?{person} wants to know when {parcel} comes"],
        ["{person} will be told.", "I will tell {person} when {parcel} arrives."],
    )
    def sms_when_delivered(self, parcel: Parcel, person: Person) -> dict[str, Any]:
        return {"status": "on"}
