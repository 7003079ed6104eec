"""Words that values are made of."""


def listed(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(" ".join(each.split()) for each in text.split(","))


FIRST = listed("""
    Anna, Ben, Carla, Dmitri, Elena, Farid, Greta, Hassan, Ines, Jonas, Keiko, Lars, Mina, Nadia, Omar, Paula,
    Quentin, Rosa, Samir, Tilda, Ulrich, Vera, Walid, Xenia, Yusuf, Zoe, Amara, Bruno, Chidi, Dalia, Emil, Fiona,
    Goran, Hana, Igor, Jasmin, Kwame, Leila, Marco, Noor, Olga, Pedro, Rania, Sven, Tomas, Uma, Victor, Wanda, Yara,
    Zeno, Alice, Bob, Clara, David, Emma, Felix, Hugo, Ivy, Kai, Luca, Maya, Nina, Oscar, Priya, Rui, Sofia, Theo,
    Anouk, Bashir, Celeste, Diego, Esther, Finn, Gloria, Hiro, Isabel, Jamal
""")
LAST = listed("""
    Abbott, Becker, Costa, Dubois, Eriksen, Fischer, Garcia, Hoffmann, Ivanov, Jensen, Kowalski, Larsen, Moreau,
    Novak, Okafor, Patel, Quinn, Rossi, Schmidt, Tanaka, Ueda, Vargas, Weber, Xu, Yilmaz, Zhang, Adeyemi, Bianchi,
    Chen, Diaz, Engel, Fontaine, Grant, Haddad, Ito, Jansen, Khan, Lindqvist, Mbeki, Nguyen, Ortiz, Petrov, Reyes,
    Santos, Torres, Ulloa, Vogel, Wagner, Young, Zimmer, Mbaye, Sato, Keller, Brandt, Murphy, Olsen, Marino, Silva,
    Roth, Bauer
""")
CITIES = listed("""
    Lisbon, Oslo, Zurich, Nairobi, Kyoto, Toronto, Lima, Vienna, Prague, Dublin, Seoul, Accra, Milan, Porto, Riga,
    Geneva, Cairo, Bergen, Hamburg, Lyon, Boston, Austin, Denver, Manila, Hanoi, Delhi, Perth, Quito, Bogota,
    Santiago, Helsinki, Warsaw, Athens, Madrid, Rome, Paris, London, Berlin, New York, San Francisco, Cape Town,
    Buenos Aires, Hong Kong, Los Angeles, Mexico City, Rio de Janeiro, Tel Aviv, Kuala Lumpur, Antwerp, Bristol,
    Cork, Dresden, Essen, Florence, Graz, Innsbruck, Krakow, Leeds, Malmo, Nice
""")
STREETS = listed("""
    Maple Street, Station Road, Harbour Lane, Hill Avenue, Mill Road, Church Street, Park Row, River Walk, Garden
    Street, King Street, Elm Drive, Cedar Court, Market Square, Bridge Street, Lake View, Forest Path, Orchard
    Close, Canal Street, North Road, Sunset Boulevard, Castle Street, Meadow Lane, Union Square, Rose Alley
""")
DOMAINS = listed("""
    example.com, example.org, mail.test, work.test, north.example, post.example, team.test, office.example
""")
TOPICS = listed("""
    budget planning, the summer party, quarterly results, the new website, safety training, hiring, customer
    feedback, the office move, data protection, the product launch, travel costs, the roof repair, team building,
    supplier contracts, the audit, parking spaces, the newsletter, pricing, onboarding, the holiday schedule,
    network security, printer paper, the annual report, machine maintenance, sustainability, the trade fair, energy
    savings, shift plans, quality control, the warehouse inventory, a broken screen, slow internet, a late delivery,
    a wrong invoice, lost luggage, a missing refund, the login page, the mobile app, an expired password, the
    heating
""")
NOTES = listed("""
    bring the keys, buy milk and bread, call me back before noon, the meeting is moved to Friday, happy birthday,
    please water the plants, I will be ten minutes late, the package is at the door, dinner is ready, check the oil
    level, thank you for your help, don't forget the tickets, the code is on the fridge, leave it with the
    neighbour, we need more chairs, the contract is signed, see you at the station, pick up the kids, the train is
    delayed, feed the cat twice, return the library books, the invoice is paid, use the back entrance, it works
    again, the printer is out of toner, take your umbrella, I found your phone, the doctor called, lunch is on me,
    turn off the lights, the flight lands at six, send me the photos, the report is almost done, please confirm the
    appointment, the garage is open, we are out of coffee
""")
MASKS = listed("""
    lumen, orchid, basalt, quiver, tundra, ember, cobalt, willow, zephyr, marble, falcon, indigo, saffron, pebble,
    raven, cinder, maple, velvet, onyx, harbor, juniper, copper, lantern, meadow, nectar, opal, prism, quartz,
    ripple, sable, thistle, umber, vortex, walnut, yonder, zenith, alder, bramble, cascade, drift, echo, flint,
    grove, hollow, ivory, jasper, kestrel, lichen, mirage, nimbus, osprey, plume, rook, sierra, talon, vesper, wren,
    blip, dorp, fizz, grab, klee, morf, plix, quon, strad, trev, vlim, zang
""")
